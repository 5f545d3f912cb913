"""The scan on a CPU, by Numba: jobs for its kernels, divided among threads.

The threads are our own, and run without Python's lock. Channels that do not
fill vectors are copied with zeros behind them.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from .numba_kernels import CHUNK, LANES, backward, forward
from .scan_inputs import Options, Tensors
from .scan_paths import NUM_DIRECTIONS

_STATE_BYTES = 2**16  # of a job's states: they stay in a fast cache
_MOST_VECTORS = 16  # of a tile
_SMALL_JOB = 2**17  # states to be updated; threads take longer to be woken

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
    with nullcontext() if kernel.overloads else _told_if_it_takes_long():
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


def _padding(channels: int) -> int:
    """How many fill the last vector."""
    return -channels % LANES


def _array(tensor: Tensor, padding: int = 0) -> np.ndarray:
    """Its memory, or a copy with zeros for more channels.

    ``numpy()`` alone would forbid to resize the storage, which is what
    sharding does with weights.
    """
    tensor = tensor.detach().contiguous()
    if padding:
        tensor = F.pad(tensor, (0, padding))
    return torch.from_dlpack(to_dlpack(tensor)).numpy()


def _paths_at_once(tensors: Tensors, options: Options) -> int:
    """Those that use the same parameters in the same order."""
    together = tensors.A.shape[0] == 1 and options.param_order == 'raster'
    return len(options.paths) if together else 1


class _Job(NamedTuple):
    """What both passes need."""

    inputs: tuple[np.ndarray | bool, ...]
    paths: int  # walked at once
    tile: int  # vectors of channels
    tiles: int
    jobs: int
    work: int  # states to be updated


def _job(tensors: Tensors, options: Options) -> _Job:
    x, delta, A, B, C, D, theta, bias = tensors
    batch, length, channels = x.shape
    num_paths, num_states = len(options.paths), A.shape[2]
    if D is None:
        skip = x.new_zeros(channels)
    else:
        skip = D.sum(0) * (num_paths // len(D))
    if theta is None:
        theta = x.new_zeros(NUM_DIRECTIONS, num_states)
    if bias is None:
        bias = x.new_zeros(len(A), channels)
    order, _, direction = options.tables(x.device)
    raster = options.param_order == 'raster'
    places = torch.arange(length).expand_as(order) if raster else order
    padding = _padding(channels)
    if padding:
        A = F.pad(A, (0, 0, 0, padding))
    A = A.unflatten(1, (-1, LANES)).mT
    inputs = (
        *(_array(x, padding), _array(delta, padding)),
        *(_array(A), _array(B), _array(C), _array(skip, padding)),
        *(_array(theta), _array(bias, padding)),
        *(_array(t) for t in (order, places, direction)),
        options.delta_softplus,
    )
    paths = _paths_at_once(tensors, options)
    vectors = A.shape[1]
    fitting = _STATE_BYTES // (paths * num_states * LANES * x.itemsize)
    # A tile for each thread, if there are fewer images.
    tiles = -(-torch.get_num_threads() // max(1, batch))
    tile = max(1, min(_MOST_VECTORS, fitting, -(-vectors // tiles)))
    tiles = -(-vectors // tile)
    return _Job(
        inputs,
        paths,
        tile,
        tiles,
        batch * tiles,
        batch * length * channels * num_paths * num_states,
    )


def states_shape(tensors: Tensors, options: Options) -> tuple[int, ...]:
    """Of the states that the forward pass keeps for the backward pass."""
    batch, length, channels = tensors.x.shape
    paths = _paths_at_once(tensors, options)
    return (
        *(-(-length // CHUNK), batch, len(options.paths) // paths),
        *(-(-channels // LANES), tensors.A.shape[2], paths, LANES),
    )


def scan_forward(
    tensors: Tensors, options: Options, save_states: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass; all tensors of float32, or of float64.

    Returns:
        tuple: ``y`` like ``x``, and the states before the steps 0, CHUNK,
        2 CHUNK, ..., of ``states_shape``; no chunks unless ``save_states``.
    """
    x, job = tensors.x, _job(tensors, options)
    batch, length, channels = x.shape
    chunks, *shape = states_shape(tensors, options)
    saved = x.new_empty(chunks if save_states else 0, *shape)
    y = x.new_empty(batch, length, channels + _padding(channels))
    _in_threads(
        forward,
        (job.inputs, saved.numpy(), y.numpy(), job.paths, job.tile),
        job.jobs,
        job.work,
    )
    return y[..., :channels], saved


def scan_backward(
    grad_y: Tensor, tensors: Tensors, saved: Tensor, options: Options
) -> Tensors:
    """Gradients, None where there was no tensor."""
    x, _, A, B, _, D, theta, bias = tensors
    job = _job(tensors, options)
    batch, length, channels = x.shape
    own, num_states = len(A), A.shape[2]
    padding = _padding(channels)
    padded = channels + padding
    vectors = padded // LANES
    grads = (
        x.new_empty(batch, length, padded),
        x.new_empty(batch, length, own, padded),
        x.new_zeros(batch, own, vectors, num_states, LANES),
        x.new_zeros(job.tiles, *B.shape),
        x.new_zeros(job.tiles, *B.shape),
        x.new_zeros(batch, padded),
        x.new_zeros(job.tiles, batch, NUM_DIRECTIONS, num_states),
    )
    _in_threads(
        backward,
        (
            job.inputs,
            _array(grad_y, padding),
            _array(saved),
            tuple(t.numpy() for t in grads),
            job.paths,
            job.tile,
        ),
        job.jobs,
        job.work,
    )
    grad_x, grad_delta, grad_A, grad_B, grad_C, grad_skip, grad_theta = grads
    grad_delta = grad_delta[..., :channels]
    grad_A = grad_A.sum(0).mT.flatten(1, 2)
    grad_D = None
    if D is not None:
        grad_D = grad_skip[:, :channels].sum(0).expand_as(D)
        grad_D = grad_D * (len(options.paths) // len(D))
    return Tensors(
        grad_x[..., :channels],
        grad_delta,
        grad_A[:, :channels],
        grad_B.sum(0),
        grad_C.sum(0),
        grad_D,
        None if theta is None else grad_theta.sum((0, 1)),
        None if bias is None else grad_delta.sum((0, 1)),
    )
