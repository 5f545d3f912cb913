"""The kernels of the Triton backend.

A program owns a tile of channels of one image and walks the steps of paths,
with the states in registers as tiles (state, channels). Tokens are read and
written where they lie; nothing is permuted or gathered outside. Paths that
share their parameters at every step are a group, walked together: one
exponential serves all of them.

A sequence may be cut into segments: a first launch finds what each makes of a
zero state, the next one starts them from there. What paths add to a token is
private to a thread, or kept for each path and summed afterwards: sums have a
fixed order, results do not change from run to run.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + exp(-|x|)), or x above 20 as in PyTorch.

    log(1 + e) = 2 artanh(z) with z = e / (2 + e) <= 1 / 3, by its series.
    """
    TERMS: tl.constexpr = 18 if x.dtype == tl.float64 else 8
    e = tl.exp(-tl.abs(x))
    z = e / (2 + e)
    series = tl.zeros_like(x)
    for k in tl.static_range(TERMS - 1, -1, -1):
        series = series * (z * z) + 1 / (2 * k + 1)
    return tl.where(x > 20, x, tl.maximum(x, 0) + 2 * z * series)


@triton.jit
def _softplus_slope(x):
    return tl.where(x > 20, 1, tl.sigmoid(x))


@triton.jit
def _put(p, value, mask, ADD: tl.constexpr):
    """Store, or add to what no other thread adds to."""
    if ADD:
        tl.atomic_add(p, value, mask, sem='relaxed')
    else:
        tl.store(p, value, mask)


@triton.jit
def _tokens(i, order, length, PATHS: tl.constexpr):
    """Which one each path visits in step i."""
    tokens = ()
    for p in tl.static_range(PATHS):
        tokens = tokens + (tl.load(order + p * length + i),)
    return tokens


@triton.jit
def _token_rows(x, s, tokens, o_e, channels):
    """What the paths read, as it is stored."""
    rows = ()
    for p in tl.static_range(len(tokens)):
        place = x + tokens[p] * s[1] + o_e * s[2]
        rows = rows + (tl.load(place, o_e < channels, other=0),)
    return rows


@triton.jit
def _param_row(t, s, i, tokens, p, o, limit, FOLLOW: tl.constexpr):
    """delta, B or C of path p in step i, as it is stored."""
    q = tokens[p] if FOLLOW else i
    place = t + q * s[1] + p * s[2] + o * s[3]
    return tl.load(place, o < limit, other=0)


@triton.jit
def _state_rows(
    B, C, s_B, s_C, i, tokens, o_n, STATES: tl.constexpr,
    FOLLOW: tl.constexpr, WITH_C: tl.constexpr,
):  # fmt: skip
    """B for each path and, as the last one, C."""
    rows = ()
    for p in tl.static_range(len(tokens)):
        row = _param_row(B, s_B, i, tokens, p, o_n, STATES, FOLLOW)
        rows = rows + (row,)
    if WITH_C:
        row = _param_row(C, s_C, i, tokens, 0, o_n, STATES, FOLLOW)
        rows = rows + (row,)
    return rows


@triton.jit
def _load_A(
    A, o_e, o_n, channels, STATES: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """A tile of A, as exponents of 2."""
    mask = (o_n[:, None] < STATES) & (o_e[None, :] < channels)
    tile = tl.load(A + o_e[None, :] * STATES + o_n[:, None], mask, other=0)
    return tile.to(dtype) * LOG2E


@triton.jit
def _load_vector(t, group, s, o_e, channels, dtype: tl.constexpr):
    """D or the bias; zeros if there is none."""
    values = tl.zeros([o_e.shape[0]], dtype)
    if t is not None:
        place = t + group * s + o_e
        values = tl.load(place, o_e < channels, other=0).to(dtype)
    return values


@triton.jit
def _step_size(row, bias, SOFTPLUS: tl.constexpr):
    size = row.to(bias.dtype) + bias
    return _softplus(size) if SOFTPLUS else size


@triton.jit
def _clamp(i, first, last):
    return tl.minimum(tl.maximum(i, first), last)


@triton.jit
def _carried(
    h, exponents, ends, sums, first_segment, count, step, s_ends, s_sums,
    o_en, m_en, o_e, m_e, size,
):  # fmt: skip
    """The states after some segments, from what these make of zero."""
    for s in range(count):
        o_s = tl.cast(first_segment + s * step, tl.int64)
        past = tl.load(sums + o_s * s_sums + o_e, m_e, other=0)
        decay = tl.exp2(past[None, :] * exponents)
        h_next = ()
        for p in tl.static_range(len(h)):
            end = ends + o_s * s_ends + p * size + o_en
            h_next = h_next + (decay * h[p] + tl.load(end, m_en, other=0),)
        h = h_next
    return h


@triton.jit
def _walk(
    x, delta, B, C, skip, bias, exponents, h, order, out,
    first, last, length, channels, o_e, o_n, s_x, s_delta, s_B, s_C, s_y,
    WHAT: tl.constexpr, STATES: tl.constexpr, FOLLOW: tl.constexpr,
    SOFTPLUS: tl.constexpr, ADD: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Steps ``first`` to ``last``, both included, of paths of an image.

    See ``walk_kernel`` for WHAT; 'states' stores the states before every
    CHUNK-th step, (chunks, paths, channel, state).

    Returns:
        tuple: The states after it, and the sum of the step sizes.
    """
    PATHS: tl.constexpr = len(h)
    BN: tl.constexpr = o_n.shape[0]
    BE: tl.constexpr = o_e.shape[0]
    o_state = tl.arange(0, BE)[None, :] * BN + o_n[:, None]
    REVERSE: tl.constexpr = WHAT == 'grad_ends'
    STEP: tl.constexpr = -1 if REVERSE else 1
    READS: tl.constexpr = WHAT == 'y'
    dtype: tl.constexpr = bias.dtype

    total = tl.zeros([BE], dtype)
    i = last if REVERSE else first
    # What is read in the next step is on its way while one is computed.
    tokens = _tokens(i, order, length, PATHS)
    tokens_next = _tokens(_clamp(i + STEP, first, last), order, length, PATHS)
    x_i = _token_rows(x, s_x, tokens, o_e, channels)
    d_i = _param_row(delta, s_delta, i, tokens, 0, o_e, channels, FOLLOW)
    rows = _state_rows(B, C, s_B, s_C, i, tokens, o_n, STATES, FOLLOW, READS)
    for j in range(last - first + 1):
        i = last - j if REVERSE else first + j
        i_next = _clamp(i + STEP, first, last)
        x_next = _token_rows(x, s_x, tokens_next, o_e, channels)
        d_next = _param_row(
            delta, s_delta, i_next, tokens_next, 0, o_e, channels, FOLLOW
        )
        rows_next = _state_rows(
            B, C, s_B, s_C, i_next, tokens_next, o_n, STATES, FOLLOW, READS
        )
        i_after = _clamp(i + 2 * STEP, first, last)
        tokens_after = _tokens(i_after, order, length, PATHS)
        if WHAT == 'states':  # a constant, unlike what is asked next
            if j % CHUNK == 0:
                for p in tl.static_range(PATHS):
                    place = out + (j // CHUNK * PATHS + p) * (BN * BE)
                    tl.store(place + o_state, h[p])

        size = _step_size(d_i, bias, SOFTPLUS)
        total += size
        decay = tl.exp2(size[None, :] * exponents)
        h_next = ()
        for p in tl.static_range(PATHS):
            b_x, b_B = x_i[p].to(dtype), rows[p].to(dtype)
            if REVERSE:
                b_h = decay * (h[p] + b_B[:, None] * b_x[None, :])
            else:
                b_h = decay * h[p] + b_B[:, None] * (size * b_x)[None, :]
            h_next = h_next + (b_h,)
            if READS:
                b_C = rows[PATHS].to(dtype)
                b_y = skip * b_x + tl.sum(b_C[:, None] * b_h, axis=0)
                place = out + p * s_y[1] + tokens[p] * s_y[2] + o_e
                _put(place, b_y, o_e < channels, ADD)
        h = h_next
        x_i, d_i, rows = x_next, d_next, rows_next
        tokens, tokens_next = tokens_next, tokens_after
    return h, total


@triton.jit(do_not_specialize=['length', 'steps'])
def walk_kernel(
    x, delta, A, B, C, D, bias, order, ends, sums, y,
    length, channels, steps, s_x, s_delta, s_A, s_B, s_C, s_D, s_y,
    WHAT: tl.constexpr, STATES: tl.constexpr, BE: tl.constexpr,
    PATHS: tl.constexpr, FOLLOW: tl.constexpr, SOFTPLUS: tl.constexpr,
    SPLIT: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One group of PATHS paths, with the same parameters.

    Program ids: image and tile of channels; group; segment of the sequence.
    WHAT it finds:

    - 'y'.
    - 'ends': the state that the segment makes of zero, and the sum of its
      step sizes, from which the decay over the segment follows.
    - 'grad_ends': the same of the gradient of the state, from the last step
      to the first; x and B are the gradient of y and C then.
    """
    BN: tl.constexpr = triton.next_power_of_2(STATES)
    dtype: tl.constexpr = ends.dtype.element_ty
    tiles = tl.cdiv(channels, BE)
    batch = tl.num_programs(0) // tiles
    i_b = (tl.program_id(0) // tiles).to(tl.int64)
    group, i_s = tl.program_id(1), tl.program_id(2)
    i_group = i_b * tl.num_programs(1) + group
    o_e = tl.program_id(0) % tiles * BE + tl.arange(0, BE)
    o_n = tl.arange(0, BN)
    m_e = o_e < channels
    m_en = (o_n < STATES)[:, None] & m_e[None, :]
    o_en = o_e[None, :] * STATES + o_n[:, None]
    s_sums = tl.cast(batch, tl.int64) * tl.num_programs(1) * channels
    s_ends = s_sums * (PATHS * STATES)
    ends += i_group * PATHS * STATES * channels
    sums += i_group * channels
    first = i_s * steps

    exponents = _load_A(A + group * s_A, o_e, o_n, channels, STATES, dtype)
    h = ()
    for _ in tl.static_range(PATHS):
        h = h + (tl.zeros([BN, BE], dtype),)
    if WHAT == 'y' and SPLIT:
        h = _carried(
            h, exponents, ends, sums, 0, i_s, 1, s_ends, s_sums,
            o_en, m_en, o_e, m_e, STATES * channels,
        )  # fmt: skip
    h, total = _walk(
        x + i_b * s_x[0], delta + i_b * s_delta[0] + group * s_delta[2],
        B + i_b * s_B[0] + group * PATHS * s_B[2],
        C + i_b * s_C[0] + group * s_C[2],
        _load_vector(D, group, s_D, o_e, channels, dtype),
        _load_vector(bias, group, s_D, o_e, channels, dtype),
        exponents, h, order + group * PATHS * length,
        y + i_b * s_y[0] + group * PATHS * s_y[1],
        first, tl.minimum(first + steps, length) - 1, length, channels,
        o_e, o_n, s_x, s_delta, s_B, s_C, s_y,
        WHAT, STATES, FOLLOW, SOFTPLUS, ADD, 1,
    )  # fmt: skip
    if WHAT != 'y':
        o_s = i_s.to(tl.int64)
        for p in tl.static_range(PATHS):
            place = ends + o_s * s_ends + p * STATES * channels + o_en
            tl.store(place, h[p], m_en)
        tl.store(sums + o_s * s_sums + o_e, total, m_e)


@triton.jit
def _chunk_rows(
    x, grad_y, delta, s_x, s_g, s_delta, order, start, first, last, length,
    channels, o_e, PATHS: tl.constexpr, FOLLOW: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Tokens, x, grad_y and delta of CHUNK steps, as they are stored."""
    tokens = ()
    xs = ()
    dys = ()
    deltas = ()
    for c in tl.static_range(CHUNK):
        i = _clamp(start + c, first, last)
        its = _tokens(i, order, length, PATHS)
        row = _param_row(delta, s_delta, i, its, 0, o_e, channels, FOLLOW)
        tokens = tokens + its
        xs = xs + _token_rows(x, s_x, its, o_e, channels)
        dys = dys + _token_rows(grad_y, s_g, its, o_e, channels)
        deltas = deltas + (row,)
    return tokens, xs, dys, deltas


@triton.jit(do_not_specialize=['length', 'steps'])
def backward_kernel(
    grad_y, x, delta, A, B, C, D, bias, order, ends, sums, grad_ends, states,
    grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D,
    length, channels, steps,
    s_g, s_x, s_delta, s_A, s_B, s_C, s_D, s_gx, s_gd,
    STATES: tl.constexpr, BE: tl.constexpr, PATHS: tl.constexpr,
    FOLLOW: tl.constexpr, SOFTPLUS: tl.constexpr, SPLIT: tl.constexpr,
    TOGETHER: tl.constexpr, CHUNK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """All gradients of one group of paths; program ids as above.

    A walk forwards keeps the states before every CHUNK-th step in
    ``states``. The sweep backwards, of TOGETHER paths at a time, recomputes
    those between, with channels and states of a tile spread over threads, as
    sums over both are needed.
    """
    BN: tl.constexpr = triton.next_power_of_2(STATES)
    PARTS: tl.constexpr = PATHS // TOGETHER
    dtype: tl.constexpr = states.dtype.element_ty
    tiles = tl.cdiv(channels, BE)
    batch = tl.num_programs(0) // tiles
    i_e = tl.program_id(0) % tiles
    i_b = (tl.program_id(0) // tiles).to(tl.int64)
    group, groups = tl.program_id(1), tl.num_programs(1)
    i_s, segments = tl.program_id(2), tl.num_programs(2)
    i_group = i_b * groups + group
    o_e = i_e * BE + tl.arange(0, BE)
    o_n = tl.arange(0, BN)
    m_e, m_n = o_e < channels, o_n < STATES
    m_en = m_n[:, None] & m_e[None, :]
    o_en = o_e[None, :] * STATES + o_n[:, None]
    # One column of a tile stores what its row has summed.
    o_column = o_n[:, None] + tl.zeros([1, BE], tl.int32)
    m_column = m_n[:, None] & (tl.arange(0, BE)[None, :] == 0)

    s_sums = tl.cast(batch, tl.int64) * groups * channels
    s_ends = s_sums * (PATHS * STATES)
    ends += i_group * PATHS * STATES * channels
    grad_ends += i_group * PATHS * STATES * channels
    sums += i_group * channels
    first = i_s * steps
    last = tl.minimum(first + steps, length) - 1
    i_program = tl.program_id(0) + tl.num_programs(0) * (
        group + groups * i_s
    ).to(tl.int64)
    states += i_program * tl.cdiv(steps, CHUNK) * (PATHS * BN * BE)
    o_state = tl.arange(0, BE)[None, :] * BN + o_n[:, None]
    grad_y, x = grad_y + i_b * s_g[0], x + i_b * s_x[0]
    delta += i_b * s_delta[0] + group * s_delta[2]
    A += group * s_A
    B += i_b * s_B[0] + group * PATHS * s_B[2]
    C += i_b * s_C[0] + group * s_C[2]
    order += group * PATHS * length
    grad_x += i_b * s_gx[0] + group * PATHS * s_gx[1]
    grad_delta += i_group * s_gd
    # (tiles, batch, paths or parts of groups, length, state)
    i_tile = (i_e.to(tl.int64) * batch + i_b) * groups + group
    grad_B += i_tile * PATHS * length * STATES
    grad_C += i_tile * PARTS * length * STATES

    b_bias = _load_vector(bias, group, s_D, o_e, channels, dtype)
    skip = _load_vector(D, group, s_D, o_e, channels, dtype)
    exponents = _load_A(A, o_e, o_n, channels, STATES, dtype)
    h = ()
    for _ in tl.static_range(PATHS):
        h = h + (tl.zeros([BN, BE], dtype),)
    if SPLIT:
        h = _carried(
            h, exponents, ends, sums, 0, i_s, 1, s_ends, s_sums,
            o_en, m_en, o_e, m_e, STATES * channels,
        )  # fmt: skip
    _walk(
        x, delta, B, C, skip, b_bias, exponents, h, order, states,
        first, last, length, channels, o_e, o_n, s_x, s_delta, s_B, s_C, s_x,
        'states', STATES, FOLLOW, SOFTPLUS, False, CHUNK,
    )  # fmt: skip
    tl.debug_barrier()  # what is stored is loaded by other threads
    b_grad_A = tl.zeros([BN, BE], dtype)
    b_grad_D = tl.zeros([BE], dtype)
    chunks = tl.cdiv(last - first + 1, CHUNK)

    for part in range(PARTS):
        path = part * TOGETHER
        p_order = order + path * length
        p_B = B + path * s_B[2]
        g = ()
        for _ in tl.static_range(TOGETHER):
            g = g + (tl.zeros([BN, BE], dtype),)
        if SPLIT:
            g = _carried(
                g, exponents, grad_ends + path * STATES * channels, sums,
                segments - 1, segments - 1 - i_s, -1, s_ends, s_sums,
                o_en, m_en, o_e, m_e, STATES * channels,
            )  # fmt: skip

        tokens_c, x_c, dy_c, raw_c = _chunk_rows(
            x, grad_y, delta, s_x, s_g, s_delta, p_order,
            first + (chunks - 1) * CHUNK, first, last, length, channels, o_e,
            TOGETHER, FOLLOW, CHUNK,
        )  # fmt: skip
        for j in range(chunks):
            chunk = chunks - 1 - j
            start = first + chunk * CHUNK
            hs = ()
            for k in tl.static_range(TOGETHER):
                place = states + (chunk * PATHS + path + k) * (BN * BE)
                hs = hs + (tl.load(place + o_state),)
            B_c = ()
            for c in tl.static_range(CHUNK):
                i = tl.minimum(start + c, last)
                tokens = ()
                for k in tl.static_range(TOGETHER):
                    tokens = tokens + (tokens_c[c * TOGETHER + k],)
                B_c = B_c + _state_rows(
                    p_B, C, s_B, s_C, i, tokens, o_n, STATES, FOLLOW, True
                )
            # Rows of the chunk before this one are on their way meanwhile.
            tokens_next, x_next, dy_next, raw_next = _chunk_rows(
                x, grad_y, delta, s_x, s_g, s_delta, p_order, start - CHUNK,
                first, last, length, channels, o_e, TOGETHER, FOLLOW, CHUNK,
            )  # fmt: skip

            size_c = ()
            decay_c = ()
            for c in tl.static_range(CHUNK):
                size = _step_size(raw_c[c], b_bias, SOFTPLUS)
                # Past the end the state stays as it is.
                size = tl.where(start + c <= last, size, 0)
                decay = tl.exp2(size[None, :] * exponents)
                size_c = size_c + (size,)
                decay_c = decay_c + (decay,)
                for k in tl.static_range(TOGETHER):
                    b_u = size * x_c[c * TOGETHER + k].to(dtype)
                    b_B = B_c[c * (TOGETHER + 1) + k].to(dtype)
                    b_h = hs[c * TOGETHER + k]
                    b_h = decay * b_h + b_B[:, None] * b_u[None, :]
                    hs = hs + (b_h,)
            for c in tl.static_range(CHUNK - 1, -1, -1):
                is_step = start + c <= last
                i = tl.minimum(start + c, last)
                q = tokens_c[c * TOGETHER] if FOLLOW else i
                b_C = B_c[c * (TOGETHER + 1) + TOGETHER].to(dtype)
                size, decay = size_c[c], decay_c[c]

                b_grad_size = tl.zeros([BE], dtype)
                b_hdy = tl.zeros([BN, BE], dtype)
                b_grad_exponent = tl.zeros([BN, BE], dtype)
                g_next = ()
                for k in tl.static_range(TOGETHER):
                    b_dy = dy_c[c * TOGETHER + k].to(dtype)
                    b_dy = tl.where(is_step, b_dy, 0)
                    b_x = x_c[c * TOGETHER + k].to(dtype)
                    b_B = B_c[c * (TOGETHER + 1) + k].to(dtype)
                    b_g = g[k] + b_C[:, None] * b_dy[None, :]
                    b_hdy += hs[(c + 1) * TOGETHER + k] * b_dy[None, :]
                    b_grad_B = tl.sum(
                        b_g * (size * b_x)[None, :], axis=1, keep_dims=True
                    )
                    # of delta x
                    b_grad_u = tl.sum(b_B[:, None] * b_g, axis=0)
                    b_g *= decay
                    g_next = g_next + (b_g,)
                    b_grad_exponent += b_g * hs[c * TOGETHER + k]
                    b_grad_size += b_grad_u * b_x
                    if D is not None:
                        b_grad_D += b_x * b_dy
                    tl.store(
                        grad_B + ((path + k) * length + q) * STATES + o_column,
                        tl.broadcast_to(b_grad_B, [BN, BE]),
                        m_column & is_step,
                    )  # fmt: skip
                    _put(
                        grad_x + (path + k) * s_gx[1]
                        + tokens_c[c * TOGETHER + k] * channels + o_e,
                        b_grad_u * size + skip * b_dy, m_e & is_step, ADD,
                    )  # fmt: skip
                g = g_next
                b_grad_A += b_grad_exponent * size[None, :]
                b_grad_size += (
                    tl.sum(b_grad_exponent * exponents, axis=0) / LOG2E
                )
                if SOFTPLUS:
                    b_grad_size *= _softplus_slope(raw_c[c].to(dtype) + b_bias)
                tl.store(
                    grad_C + (part * length + q) * STATES + o_column,
                    tl.broadcast_to(
                        tl.sum(b_hdy, axis=1, keep_dims=True), [BN, BE]
                    ),
                    m_column & is_step,
                )  # fmt: skip
                _put(
                    grad_delta + q * channels + o_e, b_grad_size,
                    m_e & is_step, PARTS > 1,
                )  # fmt: skip
            tokens_c, x_c, dy_c, raw_c = tokens_next, x_next, dy_next, raw_next
    i_group += i_s.to(tl.int64) * batch * groups
    tl.store(grad_A + i_group * STATES * channels + o_en, b_grad_A, m_en)
    tl.store(grad_D + i_group * channels + o_e, b_grad_D, m_e)
