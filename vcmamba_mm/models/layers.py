"""What the families share: convolutions, stochastic depth, stages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath as MMCVDropPath
from mmcv.cnn.bricks.drop import drop_path
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

torch.fx.wrap('drop_path')  # it looks at the number of dimensions


def is_float32_on_cpu(x: Tensor) -> bool:
    """Whether kernels for float32 on a CPU can be chosen for ``x``.

    Not in what is traced: that gets the plain layers, which fit every input
    and device.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not isinstance(x, torch.fx.Proxy)
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
    )


def fast_format(x: Tensor) -> Tensor:
    """A map in the memory format that suits what follows.

    float32 on a CPU channels last, which convolutions hand on: the matrix
    products of ``PointwiseConv2d`` read it as it is.
    """
    if is_float32_on_cpu(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


@torch.fx.wrap
def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution; float32 on a CPU a product of channels-last tokens.

    There PyTorch's convolution takes longer, above all in the backward pass.
    """
    if not is_float32_on_cpu(x):
        return F.conv2d(x, weight, bias)
    y = F.linear(x.movedim(-3, -1), weight.flatten(1), bias)
    return y.movedim(-1, -3)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution by ``pointwise_conv``."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise_conv(x, self.weight, self.bias)


@torch.fx.wrap
def _gelu(x: Tensor, approximate: str) -> Tensor:
    if is_float32_on_cpu(x) and x.is_contiguous(
        memory_format=torch.channels_last
    ):
        # PyTorch's faster kernels take contiguous tensors alone.
        return F.gelu(x.movedim(1, -1), approximate=approximate).movedim(-1, 1)
    return F.gelu(x, approximate=approximate)


class GELU(nn.GELU):
    """GELU that is as fast in channels-last memory as in contiguous one."""

    def forward(self, x: Tensor) -> Tensor:
        return _gelu(x, self.approximate)


class DropPath(MMCVDropPath):
    """mmcv's stochastic depth, which torch.fx can trace here."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training)


def drop_path_rates(
    last: float, depths: Sequence[int]
) -> Iterator[list[float]]:
    """Rates that grow linearly over all blocks from 0 on, stage by stage.

    Args:
        last: Rate of the last block.
        depths: Number of blocks of each stage.
    """
    num_blocks = sum(depths)
    rates = (last * i / max(num_blocks - 1, 1) for i in range(num_blocks))
    return (list(islice(rates, depth)) for depth in depths)


@contextmanager
def _kept_batch_stats(block: nn.Module) -> Iterator[None]:
    """Keep a second forward pass from updating running statistics again."""
    norms = [
        m
        for m in block.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    kept = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, (momentum, num_batches_tracked) in zip(norms, kept):
            m.momentum = momentum
            m.num_batches_tracked.copy_(num_batches_tracked)


class Blocks(nn.Sequential):
    """Blocks in a row.

    Attributes:
        with_cp: Recompute each in the backward pass, to save memory.
    """

    with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one of the blocks, as ``with_cp`` says."""
        trains = torch.is_grad_enabled() and not torch.jit.is_tracing()
        if not (self.with_cp and trains):
            return block(x)
        return checkpoint(
            block,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _kept_batch_stats(block)),
        )


class Stage(nn.Module):
    """Downsampling (the identity in a first stage), then blocks."""

    def __init__(self, downsample: nn.Module, blocks: Blocks):
        super().__init__()
        self.downsample = downsample
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


def _surely_equal(old: int, new: int) -> bool:
    """Compare sizes without fixing one that may vary."""
    if torch.jit.is_tracing():  # they are tensors
        return False
    if torch.__version__ < '2.8':  # its Dynamo could not trace the other
        return old == new
    return statically_known_true(old == new)


def resize_pos_embed(pos_embed: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a position embedding, (1, C, height, width), bicubically."""
    if all(
        _surely_equal(old, new) for old, new in zip(pos_embed.shape[2:], size)
    ):
        return pos_embed
    # bicubic interpolation exists in float32 on every device
    return F.interpolate(
        pos_embed.float(), size, mode='bicubic', align_corners=False
    ).to(pos_embed.dtype)
