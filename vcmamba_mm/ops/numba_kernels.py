"""What Numba compiles for the scan on a CPU. The only file that imports it.

A job is a tile of channels of one image. It walks the steps of one path after
the other, or of all at once where these share their parameters in raster
order, so that exp(delta A) is computed once for them. ``LANES`` channels are
one vector: loops over single channels, which the compiler can turn into
vectors, would store and load every sum over states.

The forward pass keeps the states before every ``CHUNK``-th step; the backward
pass recomputes those of one chunk and one of the N states at a time, which
stay in the fastest cache. Bias and softplus of delta are taken where a step
reads it.

Numba keeps on disk what it has compiled until this file changes. So all that
is compiled is here, and what the kernels are given are arrays, numbers and
tuples of them.
"""

import functools
import operator

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 32
CHUNK = 16

_OPTIONS = dict(
    nogil=True,
    error_model='numpy',
    fastmath={'contract'},  # a product and a sum may be one instruction
)
_INLINED = dict(_OPTIONS, forceinline=True)
_compiled = numba.njit(cache=True, **_OPTIONS)
_inlined = numba.njit(**_INLINED)


class _Vector(numba.types.Type):
    """``LANES`` numbers in the registers of the CPU."""

    def __init__(self, dtype: numba.types.Float) -> None:
        super().__init__(name=f'vector({dtype})')
        self.dtype = dtype


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, LANES))


def _spread(context, builder, vector, kind, value):
    """A vector as it is, a number in all lanes."""
    if kind == vector:
        return value
    number = context.cast(builder, value, kind, vector.dtype)
    empty = ir.Constant(context.get_value_type(vector), ir.Undefined)
    first = builder.insert_element(empty, number, ir.IntType(32)(0))
    lanes = ir.VectorType(ir.IntType(32), LANES)
    return builder.shuffle_vector(first, empty, lanes([0] * LANES))


def _elementwise(instructions):
    """A function of vectors and numbers, by the instructions it stands for."""

    @functools.wraps(instructions)  # Numba asks for the arguments
    def function(typing_context, *kinds):
        vector = next(kind for kind in kinds if isinstance(kind, _Vector))

        def generate(context, builder, signature, arguments):
            spread = [
                _spread(context, builder, vector, kind, argument)
                for kind, argument in zip(signature.args, arguments)
            ]
            return instructions(builder, *spread)

        return vector(*kinds), generate

    return intrinsic(function)


def _operator(function, instruction):
    apply = _elementwise(
        lambda builder, a, b: getattr(builder, instruction)(a, b)
    )

    @overload(function, jit_options=_INLINED)
    def _(a, b):
        if isinstance(a, _Vector) or isinstance(b, _Vector):
            return lambda a, b: apply(a, b)
        return None


_operator(operator.add, 'fadd')
_operator(operator.sub, 'fsub')
_operator(operator.mul, 'fmul')
_operator(operator.truediv, 'fdiv')


def _llvm_function(builder, name, result, *arguments):
    """Of the last argument, a vector, LLVM wants the kind in the name."""
    bits = 32 if arguments[-1].element == ir.FloatType() else 64
    return cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, arguments),
        f'llvm.{name}.v{LANES}f{bits}',
    )


@_elementwise
def _filled(builder, like, number):
    return number


@_elementwise
def _if_less(builder, a, b, then, otherwise):
    """Lane by lane, ``then if a < b else otherwise``."""
    return builder.select(builder.fcmp_ordered('<', a, b), then, otherwise)


@_elementwise
def _round(builder, x):
    return builder.call(_llvm_function(builder, 'rint', x.type, x.type), [x])


@_elementwise
def _exp_float64(builder, x):
    return builder.call(_llvm_function(builder, 'exp', x.type, x.type), [x])


@_elementwise
def _times_power_of_two(builder, x, n):
    """2^n x in float32, for whole n from -126 to 127."""
    lanes = ir.VectorType(ir.IntType(32), LANES)
    exponent = builder.add(builder.fptosi(n, lanes), lanes([127] * LANES))
    bits = builder.shl(exponent, lanes([23] * LANES))
    return builder.fmul(x, builder.bitcast(bits, x.type))


@intrinsic
def _sum(typing_context, x):
    """Of all lanes."""

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        element = x.type.element
        add = _llvm_function(
            builder, 'vector.reduce.fadd', element, element, x.type
        )
        return builder.call(add, [element(0), x], fastmath=['reassoc'])

    return x.dtype(x), generate


def _pointer(context, builder, signature, arguments):
    """To an element, by the array and its indices."""
    kinds, (array, index) = signature.args, arguments[:2]
    return cgutils.get_item_pointer(
        context,
        builder,
        kinds[0],
        context.make_array(kinds[0])(context, builder, array),
        cgutils.unpack_tuple(builder, index, len(kinds[1])),
    )


@intrinsic
def _load(typing_context, array, index):
    """``LANES`` elements of an array, from an index on."""
    vector = _Vector(array.dtype)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        kind = context.get_value_type(vector).as_pointer()
        alignment = array.dtype.bitwidth // 8
        return builder.load(builder.bitcast(pointer, kind), align=alignment)

    return vector(array, index), generate


@intrinsic
def _load_one(typing_context, array, index):
    """An element of an array in all lanes."""
    vector = _Vector(array.dtype)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        number = builder.load(pointer)
        return _spread(context, builder, vector, array.dtype, number)

    return vector(array, index), generate


@intrinsic
def _store(typing_context, array, index, vector):
    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        x, alignment = arguments[2], array.dtype.bitwidth // 8
        kind = x.type.as_pointer()
        builder.store(x, builder.bitcast(pointer, kind), align=alignment)
        return context.get_dummy_value()

    return numba.types.void(array, index, vector), generate


@_inlined
def _add(array, index, vector):
    _store(array, index, _load(array, index) + vector)


def _exp(x):
    """e^x; in float32 not below e^-87 or above e^88.

    There x = n ln 2 + f with |f| <= ln(2) / 2, and e^f by Cephes'
    coefficients (expf, error below 1e-7).
    """


@overload(_exp, jit_options=_INLINED)
def _(x):
    if x.dtype is numba.float64:
        return lambda x: _exp_float64(x)

    def polynomial(x):
        x = _if_less(x, -87.0, -87.0, x)
        x = _if_less(88.0, x, 88.0, x)
        n = _round(x * 1.4426950408889634)
        f = x - n * 0.693359375 + n * 2.12194440e-4
        p = f * 1.9875691500e-4 + 1.3981999507e-3
        p = p * f + 8.3334519073e-3
        p = p * f + 4.1665795894e-2
        p = p * f + 1.6666665459e-1
        p = p * f + 5.0000001201e-1
        return _times_power_of_two(p * f * f + f + 1.0, n)

    return polynomial


def _softplus(x):
    """log(1 + e^x), and from 20 on x, as PyTorch has it.

    That is max(x, 0) + log(1 + z) with z = e^-|x|, and log(1 + z) is
    2 artanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...) of s = z / (2 + z) <= 1 / 3.
    """


@overload(_softplus, jit_options=_INLINED)
def _(x):
    terms = 17 if x.dtype is numba.float64 else 8

    def series(x):
        z = _exp(_if_less(x, 0.0, x, x * -1.0))
        s = z / (z + 2.0)
        p = _filled(s, 0.0)
        for k in range(terms - 1, -1, -1):
            p = p * (s * s) + 1.0 / (2 * k + 1)
        y = _if_less(x, 0.0, 0.0, x) + s * p * 2.0
        return _if_less(20.0, x, x, y)

    return series


@_inlined
def _softplus_slope(x):
    return _if_less(20.0, x, 1.0, 1.0 / (_exp(x * -1.0) + 1.0))


@_inlined
def _zeros(like, shape):
    """They begin with a cache line, as vectors should not lie across two."""
    size = 1
    for length in shape:
        size *= length
    spare = 64 // like.itemsize
    memory = np.zeros(size + spare, like.dtype)
    begin = -(memory.ctypes.data // like.itemsize) % spare
    return memory[begin : begin + size].reshape(shape)


@_compiled
def _forward_group(t, saved, y, image, p, start, stop, first, paths):
    """``paths`` paths from ``first`` on, which share the parameters p."""
    x, delta, A, B, C, _, theta, bias, order, places, direction, softplus = t
    num_states = A.shape[2]
    h = _zeros(x, (stop - start, paths, num_states, LANES))
    decays = _zeros(x, (num_states, LANES))
    for i in range(order.shape[1]):
        q = places[first, i]
        for v in range(len(h)):
            w = start + v
            e = w * LANES
            d = _load(delta, (image, q, p, e)) + _load(bias, (p, e))
            d = _softplus(d) if softplus else d
            for n in range(num_states):
                _store(decays, (n, 0), _exp(d * _load(A, (p, w, n, 0))))
            for k in range(paths):
                if i % CHUNK == 0 and len(saved):
                    for n in range(num_states):
                        kept = (i // CHUNK, image, first // paths, w, n, k, 0)
                        _store(saved, kept, _load(h, (v, k, n, 0)))
                at = (image, order[first + k, i], e)
                to = direction[first + k, i]
                step, out = d * _load(x, at), _load(y, at)
                for n in range(num_states):
                    b = _load_one(B, (image, q, p, n))
                    b = b + _load_one(theta, (to, n))
                    state = _load(decays, (n, 0)) * _load(h, (v, k, n, 0))
                    state = state + b * step
                    _store(h, (v, k, n, 0), state)
                    out = out + _load_one(C, (image, q, p, n)) * state
                _store(y, at, out)


@_compiled
def forward(t, saved, y, paths, tile, first_job, last_job):
    """Jobs number ``first_job`` to ``last_job`` - 1.

    Args:
        t: x (batch, L, channels), delta (batch, L, P, channels), A (P,
            vectors, state, LANES), B and C (batch, L, P, state), skip
            (channels), theta (5, state), bias of delta (P, channels); order,
            that of the parameters, and directions (paths, L); whether to take
            softplus. The channels fill vectors.
        saved: For the states, (chunks, batch, groups of paths, vectors, state,
            paths of a group, LANES); of no chunks if they are not to be kept.
        y: For the output, like x.
        paths: How many are walked at once.
        tile: Vectors of a job.
        first_job: Number, by images and then tiles.
        last_job: Likewise, not included.
    """
    x, _, A, _, _, skip = t[:6]
    vectors = A.shape[1]
    tiles = -(-vectors // tile)
    for job in range(first_job, last_job):
        image, start = job // tiles, job % tiles * tile
        stop = min(start + tile, vectors)
        for i in range(x.shape[1]):
            for e in range(start * LANES, stop * LANES, LANES):
                out = _load(skip, (e,)) * _load(x, (image, i, e))
                _store(y, (image, i, e), out)
        for first in range(0, len(t[8]), paths):
            p = first if len(A) > 1 else 0
            _forward_group(t, saved, y, image, p, start, stop, first, paths)


@_compiled
def _backward_group(
    t, grad_y, saved, grads, image, part, p, start, stop, first, paths
):
    """The gradients of ``_forward_group``, added to what is there."""
    x, delta, A, B, C, _, theta, bias, order, places, direction, softplus = t
    grad_x, grad_delta, grad_A, grad_B, grad_C, _, grad_theta = grads
    num_states, length = A.shape[2], order.shape[1]
    g = _zeros(x, (stop - start, num_states, paths, LANES))
    h = _zeros(x, (CHUNK + 1, paths, LANES))
    decays = _zeros(x, (CHUNK, LANES))
    steps = _zeros(x, (CHUNK, LANES))
    grad_steps = _zeros(x, (CHUNK, LANES))
    inputs = _zeros(x, (CHUNK, paths, LANES))  # delta x
    grad_inputs = _zeros(x, (CHUNK, paths, LANES))
    grad_outs = _zeros(x, (CHUNK, paths, LANES))
    sums_B = _zeros(x, (CHUNK, num_states, LANES))
    sums_C = _zeros(x, (CHUNK, num_states, LANES))
    sums_theta = _zeros(x, (len(theta), num_states, LANES))
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin = chunk * CHUNK
        size = min(CHUNK, length - begin)
        sums_B[:] = 0
        sums_C[:] = 0
        for v in range(len(g)):
            w = start + v
            e = w * LANES
            for j in range(size):
                q = places[first, begin + j]
                d = _load(delta, (image, q, p, e)) + _load(bias, (p, e))
                d = _softplus(d) if softplus else d
                _store(steps, (j, 0), d)
                _store(grad_steps, (j, 0), _filled(d, 0.0))
                for k in range(paths):
                    at = (image, order[first + k, begin + j], e)
                    _store(inputs, (j, k, 0), d * _load(x, at))
                    _store(grad_inputs, (j, k, 0), _filled(d, 0.0))
                    _store(grad_outs, (j, k, 0), _load(grad_y, at))
            for n in range(num_states):
                a = _load(A, (p, w, n, 0))
                grad_a = _load(grad_A, (image, p, w, n, 0))
                for k in range(paths):
                    kept = (chunk, image, first // paths, w, n, k, 0)
                    state = _load(saved, kept)
                    _store(h, (0, k, 0), state)
                for j in range(size):
                    q = places[first, begin + j]
                    decay = _exp(_load(steps, (j, 0)) * a)
                    _store(decays, (j, 0), decay)
                    for k in range(paths):
                        to = direction[first + k, begin + j]
                        b = _load_one(B, (image, q, p, n))
                        b = b + _load_one(theta, (to, n))
                        state = decay * _load(h, (j, k, 0))
                        state = state + b * _load(inputs, (j, k, 0))
                        _store(h, (j + 1, k, 0), state)
                for j in range(size - 1, -1, -1):
                    q = places[first, begin + j]
                    c = _load_one(C, (image, q, p, n))
                    decay, grad_decay = _load(decays, (j, 0)), _filled(c, 0.0)
                    sum_B = _load(sums_B, (j, n, 0))
                    sum_C = _load(sums_C, (j, n, 0))
                    for k in range(paths):
                        to = direction[first + k, begin + j]
                        b = _load_one(B, (image, q, p, n))
                        b = b + _load_one(theta, (to, n))
                        grad_out = _load(grad_outs, (j, k, 0))
                        grad_h = _load(g, (v, n, k, 0)) + c * grad_out
                        _store(g, (v, n, k, 0), grad_h * decay)
                        grad_b = grad_h * _load(inputs, (j, k, 0))
                        sum_B = sum_B + grad_b
                        _add(sums_theta, (to, n, 0), grad_b)
                        sum_C = sum_C + _load(h, (j + 1, k, 0)) * grad_out
                        _add(grad_inputs, (j, k, 0), grad_h * b)
                        grad_decay = grad_decay + grad_h * _load(h, (j, k, 0))
                    _store(sums_B, (j, n, 0), sum_B)
                    _store(sums_C, (j, n, 0), sum_C)
                    grad_exponent = grad_decay * decay
                    _add(grad_steps, (j, 0), grad_exponent * a)
                    grad_a = grad_a + grad_exponent * _load(steps, (j, 0))
                _store(grad_A, (image, p, w, n, 0), grad_a)
            for j in range(size):
                d, grad_d = _load(steps, (j, 0)), _load(grad_steps, (j, 0))
                for k in range(paths):
                    at = (image, order[first + k, begin + j], e)
                    grad_input = _load(grad_inputs, (j, k, 0))
                    grad_d = grad_d + grad_input * _load(x, at)
                    _add(grad_x, at, grad_input * d)
                at = (image, places[first, begin + j], p, e)
                if softplus:
                    before = _load(delta, at) + _load(bias, (p, e))
                    grad_d = grad_d * _softplus_slope(before)
                if first > p:  # other paths have been here
                    grad_d = grad_d + _load(grad_delta, at)
                _store(grad_delta, at, grad_d)
        for j in range(size):
            q = places[first, begin + j]
            for n in range(num_states):
                grad_B[part, image, q, p, n] += _sum(_load(sums_B, (j, n, 0)))
                grad_C[part, image, q, p, n] += _sum(_load(sums_C, (j, n, 0)))
    for to in range(len(theta)):
        for n in range(num_states):
            total = _sum(_load(sums_theta, (to, n, 0)))
            grad_theta[part, image, to, n] += total


@_compiled
def backward(t, grad_y, saved, grads, paths, tile, first_job, last_job):
    """The gradients of ``forward``, with what it saved.

    ``grads`` are those of x and delta, of A for each image, of B and C for
    each tile, of skip for each image, of theta for each tile and image. All
    but the first two are added to.
    """
    x, _, A, _, _, skip = t[:6]
    grad_x, _, _, _, _, grad_skip, _ = grads
    vectors = A.shape[1]
    tiles = -(-vectors // tile)
    for job in range(first_job, last_job):
        image, part = job // tiles, job % tiles
        start, stop = part * tile, min((part + 1) * tile, vectors)
        for i in range(x.shape[1]):
            for e in range(start * LANES, stop * LANES, LANES):
                grad_out = _load(grad_y, (image, i, e))
                _store(grad_x, (image, i, e), _load(skip, (e,)) * grad_out)
                _add(grad_skip, (image, e), _load(x, (image, i, e)) * grad_out)
        for first in range(0, len(t[8]), paths):
            p = first if len(A) > 1 else 0
            _backward_group(
                *(t, grad_y, saved, grads, image, part),
                *(p, start, stop, first, paths),
            )
