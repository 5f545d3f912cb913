"""The kernels that a convolution of a fused model chooses from on a CPU."""

import math
import time
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..models.layers import is_float32_on_cpu, pointwise_conv


def is_float32_inference_on_cpu(x: Tensor) -> bool:
    """Whether oneDNN's kernels can be called with ``x``: for no gradients."""
    return (
        is_float32_on_cpu(x)
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
    )


def _linear(conv: nn.Conv2d, x: Tensor, post_op: str) -> Tensor:
    y = torch.ops.mkldnn._linear_pointwise(
        x.permute(0, 2, 3, 1),
        conv.weight.flatten(1),
        conv.bias,
        post_op,
        [],
        'none',
    )
    return y.permute(0, 3, 1, 2)


def _convolution(conv: nn.Conv2d, x: Tensor, post_op: str) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x,
        conv.weight,
        conv.bias,
        conv.padding,
        conv.stride,
        conv.dilation,
        conv.groups,
        post_op,
        [],
        'none',
    )


def _matmul(conv: nn.Conv2d, x: Tensor, post_op: str) -> Tensor:
    return pointwise_conv(x, conv.weight, conv.bias)


# A function, and what it does with its result: 'gelu' or 'none'
Kernel = tuple[Callable[[nn.Conv2d, Tensor, str], Tensor], str]
# By shape of the weight, GELU or not, size of the input, number of threads
fastest_kernels: dict[tuple, Kernel] = {}


class FusedConv2d(nn.Conv2d):
    """Convolution, then GELU if ``gelu``, by the fastest kernel there is.

    On the CPU these are oneDNN's convolution and, of 1x1 kernels, its matrix
    product and the one of the BLAS; GELU is a part of oneDNN's or follows in
    place. Which is faster depends on processor and shape, so that each is
    timed when an input of a new size comes, unless the algorithms have to be
    deterministic. PyTorch's convolution takes slower ones for 1x1 kernels on
    one thread, and its GELU reads and writes the map once more.
    """

    ROUNDS = 6  # of the timing; the first one is a warm-up
    gelu = False

    def forward(self, x: Tensor) -> Tensor:
        if not is_float32_inference_on_cpu(x):
            y = super().forward(x)
            return F.gelu(y) if self.gelu else y
        return self._run(self._fastest_kernel(x), x)

    def _run(self, kernel: Kernel, x: Tensor) -> Tensor:
        function, post_op = kernel
        y = function(self, x, post_op)
        if self.gelu and post_op == 'none':
            torch.ops.aten.gelu_(y.movedim(1, -1))  # fast if contiguous
        return y

    def kernels(self) -> list[Kernel]:
        """All that can compute this convolution on a CPU."""
        functions = [_convolution]
        if self.kernel_size == (1, 1):
            functions = [_linear, _matmul, _convolution]
        return [
            (function, post_op)
            for function in functions
            for post_op in ('gelu', 'none')
            if post_op == 'none' or (self.gelu and function is not _matmul)
        ]

    def _fastest_kernel(self, x: Tensor) -> Kernel:
        if torch.are_deterministic_algorithms_enabled():
            return self.kernels()[0]
        # Sizes that differ by less than a factor of two may share one, so
        # that pictures of many sizes are not timed for ever.
        size = x.numel().bit_length()
        case = (self.weight.shape, self.gelu, size, torch.get_num_threads())
        if case not in fastest_kernels:
            seconds = dict.fromkeys(self.kernels(), math.inf)
            for _ in range(self.ROUNDS):
                for kernel in seconds:
                    begin = time.perf_counter()
                    self._run(kernel, x)
                    taken = time.perf_counter() - begin
                    seconds[kernel] = min(taken, seconds[kernel])
            fastest_kernels[case] = min(seconds, key=seconds.get)
        return fastest_kernels[case]
