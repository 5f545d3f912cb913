"""The scan on a CPU, compiled by Numba. The only file that imports it.

A job is a tile of channels of one image. It walks the steps of one path after
the other, or of all at once where these share their parameters in raster
order, so that exp(delta A) is computed once for them. The states of the tile
stay in the cache, the innermost loops run over channels and become vector
instructions. Jobs are divided among threads of our own, which run without
Python's lock.

The forward pass keeps the states before every ``CHUNK``-th step; the backward
pass recomputes those of one chunk at a time from there.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic, overload
from torch import Tensor

from .scan_inputs import Options, Tensors
from .scan_paths import NUM_DIRECTIONS

CHUNK = 8
_STATE_BYTES = 2**16  # of a job's states: they stay in a fast cache
_LEAST_CHANNELS, _MOST_CHANNELS = 32, 512  # of a tile
_SMALL_JOB = 2**17  # states to be updated; threads take longer to be woken

_OPTIONS = dict(
    nogil=True,
    error_model='numpy',
    # sums in any order; NaN and infinity stay what they are
    fastmath={'reassoc', 'contract', 'arcp', 'nsz'},
)
_compiled = numba.njit(cache=True, **_OPTIONS)


@intrinsic
def _as_float32(typing_context, bits):
    """The number whose bits an int32 has."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(numba.int32), generate


def _exp(x):
    raise NotImplementedError  # for the compiler only


@overload(_exp, jit_options=_OPTIONS)
def _(x):
    """e^x; for float32 a polynomial, that loops over channels can vectorize.

    x = n ln 2 + f with |f| <= ln(2) / 2, and e^f by Cephes' coefficients
    (expf, error below 1e-7).
    """
    if x is numba.float64:
        return lambda x: math.exp(x)

    f32, i32 = np.float32, np.int32

    def polynomial(x):
        y = f32(-87.0) if x < f32(-87.0) else x
        y = f32(88.0) if y > f32(88.0) else y
        half = f32(-0.5) if y < f32(0.0) else f32(0.5)
        n = i32(y * f32(1.4426950408889634) + half)  # to the nearest
        f = y - f32(n) * f32(0.693359375) + f32(n) * f32(2.12194440e-4)
        p = f32(1.9875691500e-4) * f + f32(1.3981999507e-3)
        p = p * f + f32(8.3334519073e-3)
        p = p * f + f32(4.1665795894e-2)
        p = p * f + f32(1.6666665459e-1)
        p = p * f + f32(5.0000001201e-1)
        p = p * f * f + f + f32(1.0)
        return p * _as_float32((n + i32(127)) << i32(23))

    return polynomial


@_compiled
def _forward_group(
    x, delta, A, B, C, theta, order, direction, follow, saved, y, image, p,
    tile, first, last, h, scratch,
):  # fmt: skip
    """Paths first to last - 1, with the parameters p, of one image and tile.

    Of the job: h, (paths, state, channels of the tile); scratch, (1 + 2
    paths, channels of the tile).
    """
    num_states, channels, decay = A.shape[1], h.shape[2], scratch[0]
    for i in range(order.shape[1]):
        if i % CHUNK == 0 and len(saved):
            for k in range(first, last):
                saved[i // CHUNK, image, k, :, tile] = h[k]
        q = order[first, i] if follow else i
        d = delta[image, q, p, tile]
        if last == first + 1:  # all in one loop
            token = order[first, i]
            x_t, y_t = x[image, token, tile], y[image, token, tile]
            for n in range(num_states):
                b = B[image, q, p, n] + theta[direction[first, i], n]
                c, a, h_n = C[image, q, p, n], A[p, n, tile], h[first, n]
                for e in range(channels):
                    state = _exp(d[e] * a[e]) * h_n[e] + b * (d[e] * x_t[e])
                    h_n[e] = state
                    y_t[e] += c * state
            continue
        for k in range(first, last):
            x_t = x[image, order[k, i], tile]
            step, out = scratch[1 + 2 * k], scratch[2 + 2 * k]
            for e in range(channels):
                step[e] = d[e] * x_t[e]
                out[e] = 0
        for n in range(num_states):
            a, c = A[p, n, tile], C[image, q, p, n]
            for e in range(channels):
                decay[e] = _exp(d[e] * a[e])
            for k in range(first, last):
                b = B[image, q, p, n] + theta[direction[k, i], n]
                step, out = scratch[1 + 2 * k], scratch[2 + 2 * k]
                h_n = h[k, n]
                for e in range(channels):
                    state = decay[e] * h_n[e] + b * step[e]
                    h_n[e] = state
                    out[e] += c * state
        for k in range(first, last):
            y_t, out = y[image, order[k, i], tile], scratch[2 + 2 * k]
            for e in range(channels):
                y_t[e] += out[e]


@_compiled
def _forward(
    x, delta, A, B, C, theta, order, direction, follow, saved, y, tile,
    first_job, last_job,
):  # fmt: skip
    num_paths = len(order)
    own, num_states, channels = A.shape
    tiles = -(-channels // tile)
    for job in range(first_job, last_job):
        image, start = job // tiles, job % tiles * tile
        stop = min(start + tile, channels)
        h = np.zeros((num_paths, num_states, stop - start), x.dtype)
        scratch = np.empty((1 + 2 * num_paths, stop - start), x.dtype)
        groups = 1 if own == 1 and not follow else num_paths
        for group in range(groups):
            p = group if own > 1 else 0
            last = group + 1 if groups > 1 else num_paths
            _forward_group(
                x, delta, A, B, C, theta, order, direction, follow, saved, y,
                image, p, slice(start, stop), group, last, h, scratch,
            )  # fmt: skip


@_compiled
def _backward_group(
    grad_y, x, delta, A, B, C, theta, order, direction, follow, saved, grad_x,
    grad_delta, grad_A, grad_B, grad_C, grad_theta, image, p, part, tile,
    first, last, h, decays, g, scratch,
):  # fmt: skip
    """The gradients of ``_forward_group``, added to what is there.

    Of the job, with channels of the tile: h, (CHUNK + 1, paths, state,
    channels); decays, (CHUNK, state, channels); g, the gradient of the
    states, (paths, state, channels); scratch, (2 + paths, channels).
    """
    num_states, channels = A.shape[1], h.shape[3]
    length = order.shape[1]
    grad_d, grad_decay = scratch[0], scratch[1]
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, length)
        for k in range(first, last):
            h[0, k] = saved[chunk, image, k, :, tile]
        for i in range(begin, end):
            q, j = order[first, i] if follow else i, i - begin
            d = delta[image, q, p, tile]
            for n in range(num_states):
                a, decay = A[p, n, tile], decays[j, n]
                for e in range(channels):
                    decay[e] = _exp(d[e] * a[e])
                for k in range(first, last):
                    x_t = x[image, order[k, i], tile]
                    b = B[image, q, p, n] + theta[direction[k, i], n]
                    before, after = h[j, k, n], h[j + 1, k, n]
                    for e in range(channels):
                        after[e] = decay[e] * before[e] + b * (d[e] * x_t[e])
        for i in range(end - 1, begin - 1, -1):
            q, j = order[first, i] if follow else i, i - begin
            d = delta[image, q, p, tile]
            grad_d[:] = 0
            for k in range(first, last):
                scratch[2 + k, :] = 0  # gradient of delta x
            for n in range(num_states):
                a, decay = A[p, n, tile], decays[j, n]
                grad_a, c = grad_A[image, p, n, tile], C[image, q, p, n]
                grad_decay[:] = 0
                for k in range(first, last):
                    token, direction_k = order[k, i], direction[k, i]
                    x_t, g_n = x[image, token, tile], g[k, n]
                    grad_t = grad_y[image, token, tile]
                    before, after = h[j, k, n], h[j + 1, k, n]
                    grad_step = scratch[2 + k]
                    b = B[image, q, p, n] + theta[direction_k, n]
                    grad_b = grad_c = b * 0
                    for e in range(channels):
                        g_e = g_n[e] + c * grad_t[e]
                        grad_c += after[e] * grad_t[e]
                        grad_b += g_e * (d[e] * x_t[e])
                        grad_step[e] += g_e * b
                        grad_decay[e] += g_e * before[e]
                        g_n[e] = g_e * decay[e]
                    grad_C[part, image, q, p, n] += grad_c
                    grad_B[part, image, q, p, n] += grad_b
                    grad_theta[part, image, direction_k, n] += grad_b
                for e in range(channels):
                    grad_exponent = grad_decay[e] * decay[e]
                    grad_d[e] += grad_exponent * a[e]
                    grad_a[e] += grad_exponent * d[e]
            for k in range(first, last):
                token = order[k, i]
                x_t, grad_step = x[image, token, tile], scratch[2 + k]
                grad_x_t = grad_x[image, token, tile]
                for e in range(channels):
                    grad_d[e] += grad_step[e] * x_t[e]
                    grad_x_t[e] += grad_step[e] * d[e]
            grad_delta_q = grad_delta[image, q, p, tile]
            for e in range(channels):
                grad_delta_q[e] += grad_d[e]


@_compiled
def _backward(
    grad_y, x, delta, A, B, C, theta, order, direction, follow, saved, grad_x,
    grad_delta, grad_A, grad_B, grad_C, grad_theta, tile, first_job, last_job,
):  # fmt: skip
    num_paths = len(order)
    own, num_states, channels = A.shape
    tiles = -(-channels // tile)
    for job in range(first_job, last_job):
        image, part = job // tiles, job % tiles
        start, stop = part * tile, min((part + 1) * tile, channels)
        size = stop - start
        h = np.empty((CHUNK + 1, num_paths, num_states, size), x.dtype)
        decays = np.empty((CHUNK, num_states, size), x.dtype)
        g = np.zeros((num_paths, num_states, size), x.dtype)
        scratch = np.empty((2 + num_paths, size), x.dtype)
        groups = 1 if own == 1 and not follow else num_paths
        for group in range(groups):
            p = group if own > 1 else 0
            last = group + 1 if groups > 1 else num_paths
            _backward_group(
                grad_y, x, delta, A, B, C, theta, order, direction, follow,
                saved, grad_x, grad_delta, grad_A, grad_B, grad_C, grad_theta,
                image, p, part, slice(start, stop), group, last, h, decays, g,
                scratch,
            )  # fmt: skip


_pools: dict[int, ThreadPoolExecutor] = {}  # by process: none survives a fork


def _in_threads(
    kernel: Callable, arguments: tuple, jobs: int, work: int
) -> None:
    """Run all jobs of a kernel, in as many threads as PyTorch has."""
    if jobs == 0:
        return
    threads = min(torch.get_num_threads(), jobs, 1 + work // _SMALL_JOB)
    bounds = [jobs * i // threads for i in range(threads + 1)]
    others = []
    if threads > 1:
        pid = os.getpid()
        if pid not in _pools:
            _pools[pid] = ThreadPoolExecutor(os.cpu_count())
        others = [
            _pools[pid].submit(kernel, *arguments, *part)
            for part in pairwise(bounds[1:])
        ]
    with nullcontext() if kernel.signatures else _told_if_it_takes_long():
        kernel(*arguments, *bounds[:2])
    for other in others:
        other.result()


@contextmanager
def _told_if_it_takes_long() -> Iterator[None]:
    """Compiling takes seconds, once on a machine."""
    timer = threading.Timer(
        3.0,
        logging.getLogger(__name__).warning,
        ['The scan is being compiled for this CPU, once: some seconds'],
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _array(tensor: Tensor) -> np.ndarray:
    """Its memory; ``numpy()`` alone would forbid to resize the storage.

    Which is what sharding does with weights.
    """
    return torch.from_dlpack(tensor.detach().contiguous()).numpy()


class _Job(NamedTuple):
    """What both passes need."""

    arrays: tuple  # x, delta, A, B, C, theta, order, direction, follow
    tile: int
    tiles: int
    jobs: int
    work: int  # states to be updated


def _job(tensors: Tensors, options: Options) -> _Job:
    x, delta, A, B, C, _, theta, _ = tensors
    batch, length, channels = x.shape
    num_paths, num_states = len(options.paths), A.shape[2]
    if theta is None:
        theta = x.new_zeros(NUM_DIRECTIONS, num_states)
    paths = options.tables(x.device)
    floats = (x, delta, A.transpose(1, 2), B, C, theta)
    follow = options.param_order == 'path'
    groups = num_paths if len(A) > 1 or follow else 1
    states = num_paths // groups * num_states * x.itemsize
    tile = max(_LEAST_CHANNELS, min(_MOST_CHANNELS, _STATE_BYTES // states))
    # A tile for each thread, if there are fewer images.
    wanted = -(-torch.get_num_threads() // max(1, batch))
    tile = min(tile, max(_LEAST_CHANNELS, -(-channels // wanted)))
    tiles = -(-channels // tile)
    return _Job(
        (
            *map(_array, floats),
            paths.order.numpy(),
            paths.direction.numpy(),
            follow,
        ),
        tile,
        tiles,
        batch * tiles,
        batch * length * channels * num_paths * num_states,
    )


def states_shape(tensors: Tensors, options: Options) -> tuple[int, ...]:
    """Of the states that the forward pass keeps for the backward pass."""
    batch, length, channels = tensors.x.shape
    chunks = -(-length // CHUNK)
    num_states = tensors.A.shape[2]
    return chunks, batch, len(options.paths), num_states, channels


def scan_forward(
    tensors: Tensors, options: Options, save_states: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass; all tensors of float32, or of float64.

    Returns:
        tuple: ``y`` like ``x``, and the states before the steps 0, CHUNK,
        2 CHUNK, ..., shape (chunks, batch, paths, state, channels); no
        chunks unless ``save_states``.
    """
    x, D = tensors.x, tensors.D
    job = _job(tensors, options)
    chunks, *shape = states_shape(tensors, options)
    saved = x.new_empty(chunks if save_states else 0, *shape)
    y = torch.zeros_like(x, memory_format=torch.contiguous_format)
    if D is not None:
        torch.mul(x, D.sum(0) * (len(options.paths) // len(D)), out=y)
    _in_threads(
        _forward,
        (*job.arrays, saved.numpy(), y.numpy(), job.tile),
        job.jobs,
        job.work,
    )
    return y, saved


def scan_backward(
    grad_y: Tensor, tensors: Tensors, saved: Tensor, options: Options
) -> Tensors:
    """Gradients, None where there was no tensor."""
    x, delta, A, B, _, D, theta, _ = tensors
    job = _job(tensors, options)
    grad_D = None
    grad_y = grad_y.contiguous()
    grad_x = torch.zeros_like(grad_y)
    if D is not None:
        num_own = len(options.paths) // len(D)
        grad_D = (x * grad_y).sum((0, 1)).mul(num_own).expand_as(D)
        torch.mul(grad_y, D.sum(0) * num_own, out=grad_x)
    batch, own, num_states = len(x), len(A), A.shape[2]
    grads = (
        grad_x,
        x.new_zeros(delta.shape),
        x.new_zeros(batch, own, num_states, x.shape[2]),
        x.new_zeros(job.tiles, *B.shape),
        x.new_zeros(job.tiles, *B.shape),
        x.new_zeros(job.tiles, batch, NUM_DIRECTIONS, num_states),
    )
    _in_threads(
        _backward,
        (
            _array(grad_y),
            *job.arrays,
            _array(saved),
            *(t.numpy() for t in grads),
            job.tile,
        ),
        job.jobs,
        job.work,
    )
    grad_x, grad_delta, grad_A, grad_B, grad_C, grad_theta = grads
    return Tensors(
        grad_x,
        grad_delta,
        grad_A.sum(0).transpose(1, 2),
        grad_B.sum(0),
        grad_C.sum(0),
        grad_D,
        None if theta is None else grad_theta.sum((0, 1)),
    )
