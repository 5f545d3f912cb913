"""What the families share: layers, stochastic depth, stages."""

import math
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

from ..ops.backends import BACKENDS
from ..ops.path_scan import transforms_are_active

torch.fx.wrap('drop_path')  # it looks at the number of dimensions


def is_float32_on_cpu(x: Tensor) -> bool:
    """Whether kernels for float32 on a CPU can be chosen for ``x``.

    Not in what is traced: that gets the plain layers, which fit every input
    and device. Nor where torch.func transforms: these fit its tensors, too.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not isinstance(x, torch.fx.Proxy)
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
        and not transforms_are_active()
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


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MLP(nn.Module):
    """Two linear maps of tokens, (..., channels), with a GELU between them.

    Args:
        channels: In and out.
        hidden_channels: Between the two.
    """

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, channels)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


@torch.fx.wrap  # it looks at a dtype
def decay_rates(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), at least in float32."""
    return -A_log.to(torch.promote_types(A_log.dtype, torch.float32)).exp()


@torch.no_grad()
def init_delta_bias(bias: Tensor) -> None:
    """So that softplus of it is log-uniform from 0.001 to 0.1 (Mamba, 3.6)."""
    delta = torch.empty_like(bias)
    delta.uniform_(math.log(0.001), math.log(0.1)).exp_()
    bias.copy_(delta.expm1().log())


class ScanMixer(nn.Module):
    """A token mixer around ``ops.path_scan``.

    Args:
        conv_size: Kernel of the convolution before the scan.
        backend: Scan backend, see ``vcmamba_mm.ops.available_backends``.

    Raises:
        ValueError: If there is no such backend, or ``conv_size`` is even.
    """

    def __init__(self, conv_size: int, backend: str):
        super().__init__()
        if conv_size % 2 == 0:
            raise ValueError(
                'mixer_cfg: conv_size must be odd to keep the number of '
                f'tokens, got {conv_size}'
            )
        if backend not in ('auto', *BACKENDS):
            raise ValueError(
                f'mixer_cfg: unknown scan backend {backend!r}: '
                f"choose 'auto' or one of {BACKENDS}"
            )
        self.backend = backend

    def scan_inputs(self, x: Tensor) -> dict:
        """The arguments of ``path_scan`` for what ``forward`` is given."""
        raise NotImplementedError


class SharedScanMixer(ScanMixer):
    """A mixer whose paths share one set of delta, A, B, C and D.

    They are made as Mamba makes them (arXiv 2312.00752).

    Args:
        conv_size: As of ``ScanMixer``.
        backend: As of ``ScanMixer``.
        dt_bias_scale: How often the bias of delta is added.

    Raises:
        ValueError: As ``ScanMixer``, or if ``dt_bias_scale`` is 0.
    """

    def __init__(self, conv_size: int, backend: str, dt_bias_scale: float):
        super().__init__(conv_size, backend)
        if dt_bias_scale == 0:
            raise ValueError('mixer_cfg: dt_bias_scale must not be 0')
        self.dt_bias_scale = dt_bias_scale

    def make_scan_layers(
        self, embed_dims: int, inner_dims: int, d_state: int
    ) -> None:
        """Make what ``scan_parameters`` calls.

        Args:
            embed_dims: Channels of the mixer, C; the rank of delta is C / 16,
                rounded up.
            inner_dims: Channels that are scanned, E.
            d_state: States per channel, N.
        """
        dt_rank = math.ceil(embed_dims / 16)
        self.split_sizes = (dt_rank, d_state, d_state)
        self.x_proj = nn.Linear(inner_dims, sum(self.split_sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner_dims)
        self.A_log = nn.Parameter(
            torch.arange(1.0, d_state + 1).log().repeat(inner_dims, 1)
        )
        self.D = nn.Parameter(torch.ones(inner_dims))

    def scan_parameters(self, x: Tensor) -> dict:
        """Arguments of ``path_scan`` for tokens (batch, L, E).

        ``delta`` is the one before softplus.
        """
        params = self.x_proj(x)[:, :, None]
        delta, B, C = params.split(self.split_sizes, dim=-1)
        # W delta + s b, without a look into the layer; exact for s = 2
        s = self.dt_bias_scale
        return dict(
            x=x,
            delta=s * self.dt_proj(delta / s),
            A=decay_rates(self.A_log)[None],
            B=B,
            C=C,
            D=self.D[None],
        )


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


def run_block(with_cp: bool, block: nn.Module, *args) -> Tensor:
    """Call a block, and with ``with_cp`` again in the backward pass."""
    trains = torch.is_grad_enabled() and not torch.jit.is_tracing()
    if not (with_cp and trains):
        return block(*args)
    return checkpoint(
        block,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _kept_batch_stats(block)),
    )


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

    def to_map(self, x: Tensor, like: Tensor) -> Tensor:
        """What a block returned, as a map; ``like`` is what came in here."""
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one of the blocks, as ``with_cp`` says."""
        return run_block(self.with_cp, block, x)


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
