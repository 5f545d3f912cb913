"""The multi-directional scan as one fused Triton kernel in each direction.

A program owns a tile of channels of one image and walks the time steps of the
paths together, with the states in registers as tiles (state, channels).
Tokens are read and written where they lie; nothing is permuted or gathered
outside. In raster order one exponential a step serves all paths.

What several steps add to (y, and most gradients) is private to a program, so
sums are made in a fixed order: results do not change from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .scan_inputs import Options, Tensors
from .scan_paths import NUM_DIRECTIONS

# Steps whose states the backward pass keeps in registers.
CHUNK = 4
LOG2E = tl.constexpr(1.4426950408889634)
DIRECTIONS = tl.constexpr(NUM_DIRECTIONS)


@triton.jit
def _load_row(p, row, stride_row, o, stride, mask, dtype: tl.constexpr):
    """Row ``row`` of a matrix, in the dtype of the computation."""
    return tl.load(p + row * stride_row + o * stride, mask, other=0).to(dtype)


@triton.jit
def _add(p, value, mask):
    """Add to memory that only this program touches."""
    tl.store(p, tl.load(p, mask, other=0) + value, mask)


@triton.jit
def _forward_kernel(
    x, delta, A, B, C, D, theta, order, direction, y,
    length, channels,
    s_xb, s_xl, s_xe, s_db, s_dl, s_de, s_Bb, s_Bl, s_Bn, s_Cb, s_Cl, s_Cn,
    STATES: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
    RASTER: tl.constexpr, PATHS: tl.constexpr,
):  # fmt: skip
    """y of one image and tile of channels.

    Program ids: tile of channels, image.
    """
    i_b = tl.program_id(1).to(tl.int64)
    o_e = tl.program_id(0) * BE + tl.arange(0, BE)
    o_n = tl.arange(0, BN)
    m_e, m_n = o_e < channels, o_n < STATES
    dtype: tl.constexpr = y.dtype.element_ty
    x, delta, B, C = (
        x + i_b * s_xb, delta + i_b * s_db, B + i_b * s_Bb, C + i_b * s_Cb
    )  # fmt: skip
    y += i_b * length * channels + o_e

    b_A = tl.load(
        A + o_e[None, :] * STATES + o_n[:, None],
        m_e[None, :] & m_n[:, None], other=0,
    ).to(dtype) * LOG2E  # fmt: skip
    b_D = PATHS * tl.load(D + o_e, m_e, other=0).to(dtype)
    for i in range(length):
        b_x = _load_row(x, i, s_xl, o_e, s_xe, m_e, dtype)
        tl.store(y + i * channels, b_D * b_x, m_e)
    tl.debug_barrier()

    zero = tl.zeros([BN, BE], dtype)
    h = ()
    for _ in tl.static_range(PATHS):
        h = h + (zero,)
    for i in range(length):
        if RASTER:
            b_delta = _load_row(delta, i, s_dl, o_e, s_de, m_e, dtype)
            b_B = _load_row(B, i, s_Bl, o_n, s_Bn, m_n, dtype)
            b_C = _load_row(C, i, s_Cl, o_n, s_Cn, m_n, dtype)
            b_decay = tl.exp2(b_delta[None, :] * b_A)
        h_next = ()
        for p in tl.static_range(PATHS):
            token = tl.load(order + p * length + i)
            b_x = _load_row(x, token, s_xl, o_e, s_xe, m_e, dtype)
            b_theta = tl.load(
                theta + tl.load(direction + p * length + i) * STATES + o_n,
                m_n, other=0,
            ).to(dtype)  # fmt: skip
            if not RASTER:
                b_delta = _load_row(delta, token, s_dl, o_e, s_de, m_e, dtype)
                b_B = _load_row(B, token, s_Bl, o_n, s_Bn, m_n, dtype)
                b_C = _load_row(C, token, s_Cl, o_n, s_Cn, m_n, dtype)
                b_decay = tl.exp2(b_delta[None, :] * b_A)
            b_h = (
                b_decay * h[p]
                + (b_B + b_theta)[:, None] * (b_delta * b_x)[None, :]
            )
            h_next = h_next + (b_h,)
            b_read = tl.sum(b_C[:, None] * b_h, axis=0)
            _add(y + token * channels, b_read, m_e)
            tl.debug_barrier()  # the next path may add to the same token
        h = h_next


@triton.jit
def _backward_kernel(
    grad_y, x, delta, A, B, C, D, theta, order, direction, states,
    grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_theta,
    length, channels,
    s_gb, s_gl, s_ge, s_xb, s_xl, s_xe, s_db, s_dl, s_de, s_Bb, s_Bl, s_Bn,
    s_Cb, s_Cl, s_Cn,
    STATES: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
    RASTER: tl.constexpr, PATHS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """All gradients of one image and tile of channels.

    A sweep forwards keeps the states before every CHUNK-th step in
    ``states``; the sweep backwards recomputes those between. grad_A and
    grad_D come for each image; grad_B, grad_C and grad_theta for each image
    and tile, shapes (tiles, batch, length or directions, state).
    """
    i_e, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_e = i_e * BE + tl.arange(0, BE)
    o_n = tl.arange(0, BN)
    m_e, m_n = o_e < channels, o_n < STATES
    m_ne = m_n[:, None] & m_e[None, :]
    dtype: tl.constexpr = grad_x.dtype.element_ty
    grad_y, x, delta, B, C = (
        grad_y + i_b * s_gb, x + i_b * s_xb, delta + i_b * s_db,
        B + i_b * s_Bb, C + i_b * s_Cb,
    )  # fmt: skip
    chunks = tl.cdiv(length, CHUNK)
    o_ne = o_n[:, None] * channels + o_e[None, :]
    s_state = tl.full([], STATES, tl.int64) * channels
    o_en = o_e[None, :] * STATES + o_n[:, None]
    states += i_b * chunks * PATHS * STATES * channels + o_ne
    grad_x += i_b * length * channels + o_e
    grad_delta += i_b * length * channels + o_e
    i_tile = i_e * tl.num_programs(1) + i_b
    grad_B += i_tile * length * STATES + o_n
    grad_C += i_tile * length * STATES + o_n
    grad_theta += i_tile * DIRECTIONS * STATES + o_n

    b_A = tl.load(A + o_en, m_ne, other=0).to(dtype)
    zero = tl.zeros([BN, BE], dtype)

    # Forwards, and the start values of what is added to below.
    b_D = PATHS * tl.load(D + o_e, m_e, other=0).to(dtype)
    b_grad_D = tl.zeros([BE], dtype)
    nothing = tl.zeros([BN], dtype)
    for d in tl.static_range(DIRECTIONS):
        tl.store(grad_theta + d * STATES, nothing, m_n)
    h = ()
    for _ in tl.static_range(PATHS):
        h = h + (zero,)
    for i in range(length):
        b_x = _load_row(x, i, s_xl, o_e, s_xe, m_e, dtype)
        b_grad_y = _load_row(grad_y, i, s_gl, o_e, s_ge, m_e, dtype)
        b_grad_D += PATHS * b_x * b_grad_y
        tl.store(grad_x + i * channels, b_D * b_grad_y, m_e)
        tl.store(grad_delta + i * channels, tl.zeros([BE], dtype), m_e)
        tl.store(grad_B + i * STATES, nothing, m_n)
        tl.store(grad_C + i * STATES, nothing, m_n)
        if i % CHUNK == 0:
            for p in tl.static_range(PATHS):
                i_state = i // CHUNK * PATHS + p
                tl.store(states + i_state * s_state, h[p], m_ne)
        if RASTER:
            b_delta = _load_row(delta, i, s_dl, o_e, s_de, m_e, dtype)
            b_B = _load_row(B, i, s_Bl, o_n, s_Bn, m_n, dtype)
            b_decay = tl.exp2(b_delta[None, :] * (b_A * LOG2E))
        h_next = ()
        for p in tl.static_range(PATHS):
            token = tl.load(order + p * length + i)
            i_d = tl.load(direction + p * length + i)
            b_x = _load_row(x, token, s_xl, o_e, s_xe, m_e, dtype)
            b_theta = _load_row(theta, i_d, STATES, o_n, 1, m_n, dtype)
            if not RASTER:
                b_delta = _load_row(delta, token, s_dl, o_e, s_de, m_e, dtype)
                b_B = _load_row(B, token, s_Bl, o_n, s_Bn, m_n, dtype)
                b_decay = tl.exp2(b_delta[None, :] * (b_A * LOG2E))
            b_input = (b_B + b_theta)[:, None] * (b_delta * b_x)[None, :]
            h_next = h_next + (b_decay * h[p] + b_input,)
        h = h_next
    tl.store(grad_D + i_b * channels + o_e, b_grad_D, m_e)
    tl.debug_barrier()

    # Backwards, one path after the other; b_g is decay_{i+1} g_{i+1}.
    b_grad_A = zero
    for p in range(PATHS):
        b_g = zero
        for i_reversed in range(chunks):
            start = (chunks - 1 - i_reversed) * CHUNK
            i_state = start // CHUNK * PATHS + p
            b_h = tl.load(states + i_state * s_state, m_ne, other=0)
            chunk_h = (b_h,)
            for k in tl.static_range(CHUNK):
                i = start + k
                i_table = p * length + tl.minimum(i, length - 1)
                token = tl.load(order + i_table)
                i_d = tl.load(direction + i_table)
                q = i if RASTER else token
                m_i = m_e & (tl.full([BE], i, tl.int32) < length)
                m_k = m_n & (tl.full([BN], i, tl.int32) < length)
                b_x = _load_row(x, token, s_xl, o_e, s_xe, m_e, dtype)
                b_theta = _load_row(theta, i_d, STATES, o_n, 1, m_n, dtype)
                # Past the end delta is 0, and the state stays as it is.
                b_delta = _load_row(delta, q, s_dl, o_e, s_de, m_i, dtype)
                b_B = _load_row(B, q, s_Bl, o_n, s_Bn, m_k, dtype)
                b_decay = tl.exp2(b_delta[None, :] * (b_A * LOG2E))
                b_input = (b_B + b_theta)[:, None] * (b_delta * b_x)[None, :]
                b_h = b_decay * b_h + b_input
                chunk_h = chunk_h + (b_h,)
            for k in tl.static_range(CHUNK - 1, -1, -1):
                i = start + k
                i_table = p * length + tl.minimum(i, length - 1)
                token = tl.load(order + i_table)
                i_d = tl.load(direction + i_table)
                q = i if RASTER else token
                m_i = m_e & (tl.full([BE], i, tl.int32) < length)
                m_k = m_n & (tl.full([BN], i, tl.int32) < length)
                b_x = _load_row(x, token, s_xl, o_e, s_xe, m_e, dtype)
                b_theta = _load_row(theta, i_d, STATES, o_n, 1, m_n, dtype)
                b_delta = _load_row(delta, q, s_dl, o_e, s_de, m_i, dtype)
                b_B = _load_row(B, q, s_Bl, o_n, s_Bn, m_k, dtype)
                b_C = _load_row(C, q, s_Cl, o_n, s_Cn, m_k, dtype)
                b_grad_y = _load_row(
                    grad_y, token, s_gl, o_e, s_ge, m_i, dtype
                )
                b_decay = tl.exp2(b_delta[None, :] * (b_A * LOG2E))

                b_g += b_C[:, None] * b_grad_y[None, :]
                b_grad_C = tl.sum(chunk_h[k + 1] * b_grad_y[None, :], axis=1)
                b_grad_B = tl.sum(b_g * (b_delta * b_x)[None, :], axis=1)
                # of delta x
                b_grad_u = tl.sum((b_B + b_theta)[:, None] * b_g, axis=0)
                b_g *= b_decay
                # of delta A
                b_grad_exponent = b_g * chunk_h[k]
                b_grad_A += b_grad_exponent * b_delta[None, :]
                b_grad_delta = b_grad_u * b_x + tl.sum(
                    b_grad_exponent * b_A, axis=0
                )
                _add(grad_C + q * STATES, b_grad_C, m_k)
                _add(grad_B + q * STATES, b_grad_B, m_k)
                _add(grad_theta + i_d * STATES, b_grad_B, m_k)
                _add(grad_x + token * channels, b_grad_u * b_delta, m_i)
                _add(grad_delta + q * channels, b_grad_delta, m_i)
                tl.debug_barrier()
    tl.store(grad_A + i_b * channels * STATES + o_en, b_grad_A, m_ne)


def _tile(states: int, channels: int) -> dict[str, int]:
    """A tile that stays in the registers of one warp.

    ``channels`` fit beside 16 states, and are enough beside fewer.
    """
    BN = triton.next_power_of_2(states)
    BE = max(1, min(channels, 16 * channels // BN))
    return dict(
        STATES=states,
        BN=BN,
        BE=BE,
        num_warps=1,
        # No load may be moved before a store to the same place.
        num_stages=1,
        # Triton 3.10 no longer fuses products and sums by itself.
        enable_fp_fusion=True,
    )


def forward_options(states: int, param_order: str, num_paths: int) -> dict:
    """Compile-time constants and launch options of the forward kernel."""
    raster = param_order == 'raster'
    return dict(_tile(states, 32), RASTER=raster, PATHS=num_paths)


def backward_options(states: int, param_order: str, num_paths: int) -> dict:
    """As ``forward_options``, of the backward kernel."""
    raster = param_order == 'raster'
    return dict(_tile(states, 16), RASTER=raster, PATHS=num_paths, CHUNK=CHUNK)


def _without_paths(tensors: Tensors) -> tuple[Tensor, ...]:
    """The seven that the kernels read, zeros for those that are not there."""
    x, delta, A, B, C, D, direction_B, _ = tensors
    A = A[0].contiguous()
    if D is None:
        D = A.new_zeros(1, len(A))
    if direction_B is None:
        direction_B = A.new_zeros(NUM_DIRECTIONS, A.shape[1])
    return (
        *(x, delta.squeeze(2), A, B.squeeze(2), C.squeeze(2)),
        *(D[0].contiguous(), direction_B.contiguous()),
    )


def scan_forward(tensors: Tensors, options: Options) -> Tensor:
    """Forward pass; inputs of any floating dtypes and strides.

    Returns:
        Tensor: ``y`` in float32, or float64 if ``x`` is.
    """
    x, delta, A, B, C, D, theta = _without_paths(tensors)
    batch, length, channels = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.new_empty(x.shape, dtype=dtype)
    paths = options.tables(x.device)
    tiles = forward_options(
        A.shape[1], options.param_order, len(options.paths)
    )
    with torch.cuda.device_of(x):
        _forward_kernel[triton.cdiv(channels, tiles['BE']), batch](
            x, delta, A, B, C, D, theta, paths.order, paths.direction, y,
            length, channels, *x.stride(), *delta.stride(), *B.stride(),
            *C.stride(), **tiles,
        )  # fmt: skip
    return y


def scan_backward(
    grad_y: Tensor, tensors: Tensors, options: Options
) -> Tensors:
    """Gradients, None where there was no tensor."""
    x, delta, A, B, C, D, theta = _without_paths(tensors)
    batch, length, channels = x.shape
    states, num_paths = A.shape[1], len(options.paths)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    paths = options.tables(x.device)
    sizes = backward_options(states, options.param_order, num_paths)
    tiles = triton.cdiv(channels, sizes['BE'])

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    grads = (
        new(batch, length, channels), new(batch, length, channels),
        new(batch, channels, states), new(tiles, batch, length, states),
        new(tiles, batch, length, states), new(batch, channels),
        new(tiles, batch, NUM_DIRECTIONS, states),
    )  # fmt: skip
    chunks = triton.cdiv(length, CHUNK)
    with torch.cuda.device_of(x):
        _backward_kernel[tiles, batch](
            grad_y, x, delta, A, B, C, D, theta, paths.order,
            paths.direction, new(batch, chunks, num_paths, states, channels),
            *grads, length, channels, *grad_y.stride(), *x.stride(),
            *delta.stride(), *B.stride(), *C.stride(), **sizes,
        )  # fmt: skip
    grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_theta = grads
    return Tensors(
        grad_x,
        grad_delta[:, :, None],
        grad_A.sum(0)[None],
        grad_B.sum(0)[:, :, None],
        grad_C.sum(0)[:, :, None],
        None if tensors.D is None else grad_D.sum(0)[None],
        None if tensors.direction_B is None else grad_theta.sum((0, 1)),
    )
