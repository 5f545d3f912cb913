"""The token mixer of the MDM block."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor

from ...ops import multi_directional_scan
from ...ops.backends import BACKENDS
from ...ops.scan_inputs import PARAM_ORDERS
from ...ops.scan_paths import NUM_DIRECTIONS, NUM_PATHS
from ..layers import PointwiseConv2d

torch.fx.wrap('multi_directional_scan')  # it looks at sizes

PROJECTIONS = ('conv_norm', 'conv', 'linear')


@torch.fx.wrap  # it looks at a dtype
def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MultiDirectionalMamba(nn.Module):
    """Selective scan of a feature map along four paths.

    1x1 conv -> norm -> depthwise conv -> SiLU -> scan -> LayerNorm -> ReLU
    -> 1x1 conv -> norm (arXiv 2509.04669, fig. 2). Tokens stay channels-last,
    (batch, height * width, channels), from the depthwise convolution to the
    LayerNorm.

    Args:
        embed_dims: Channels in and out, C.
        d_state: States per channel, N.
        expand: Inner channels over ``embed_dims``; E = expand * C.
        conv_size: Kernel of the depthwise convolution. The released weights
            have 7; the paper's text says 3.
        param_order: Whose delta, B and C a step of a path uses: those of its
            own number in raster order ('raster', the released weights) or
            those of the token it visits ('path', the paper's eq. 4).
        num_paths: How many of the four paths, from the first on: 1 is the
            row snake, 2 adds its reverse, 4 the same of the columns.
        snake: False lets all rows, and all columns, run in the same
            direction.
        dt_bias_scale: How often the bias of delta is added. The released
            weights were trained with 2.
        proj: The two projections: 1x1 convolutions with a bias and a norm,
            the second one after a ReLU ('conv_norm'), the same without the
            norms ('conv'), or linear maps alone ('linear', as in Mamba).
        gate: Multiply what the scan gives by SiLU of a third projection, as
            Mamba does.
        with_norm: LayerNorm after the scan and the gate.
        norm_cfg: Config of the norms after the projections.
        backend: Scan backend, see ``vcmamba_mm.ops.available_backends``.

    Raises:
        ValueError: If ``param_order``, ``proj`` or ``backend`` is unknown,
            ``num_paths`` not from 1 to 4, ``dt_bias_scale`` 0, or
            ``conv_size`` even.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 16,
        expand: int = 2,
        conv_size: int = 7,
        param_order: str = 'raster',
        num_paths: int = NUM_PATHS,
        snake: bool = True,
        dt_bias_scale: float = 2.0,
        proj: str = 'conv_norm',
        gate: bool = False,
        with_norm: bool = True,
        norm_cfg: dict | None = None,
        backend: str = 'auto',
    ):
        super().__init__()
        if param_order not in PARAM_ORDERS:
            raise ValueError(
                f'mixer_cfg: param_order must be one of '
                f'{PARAM_ORDERS}, got {param_order!r}'
            )
        if num_paths not in range(1, NUM_PATHS + 1):
            raise ValueError(
                f'mixer_cfg: num_paths must be from 1 to {NUM_PATHS}, '
                f'got {num_paths}'
            )
        if proj not in PROJECTIONS:
            raise ValueError(
                f'mixer_cfg: proj must be one of {PROJECTIONS}, got {proj!r}'
            )
        if backend not in ('auto', *BACKENDS):
            raise ValueError(
                f'mixer_cfg: unknown scan backend {backend!r}: '
                f"choose 'auto' or one of {BACKENDS}"
            )
        if dt_bias_scale == 0:
            raise ValueError('mixer_cfg: dt_bias_scale must not be 0')
        if conv_size % 2 == 0:
            raise ValueError(
                'mixer_cfg: conv_size must be odd to keep the '
                f'size of the map, got {conv_size}'
            )
        norm_cfg = norm_cfg or dict(type='BN')
        inner_dims = expand * embed_dims
        dt_rank = math.ceil(embed_dims / 16)
        bias = proj != 'linear'
        self.param_order = param_order
        self.num_paths = num_paths
        self.snake = snake
        self.dt_bias_scale = dt_bias_scale
        self.backend = backend

        def norm(channels: int) -> nn.Module:
            if proj != 'conv_norm':
                return nn.Identity()
            return build_norm_layer(norm_cfg, channels)[1]

        self.in_proj = PointwiseConv2d(embed_dims, inner_dims, bias)
        self.in_norm = norm(inner_dims)
        self.gate_proj = None
        if gate:
            self.gate_proj = PointwiseConv2d(embed_dims, inner_dims, bias)
        self.dwconv = nn.Conv2d(
            inner_dims,
            inner_dims,
            conv_size,
            padding=conv_size // 2,
            groups=inner_dims,
        )
        self.split_sizes = (dt_rank, d_state, d_state)
        self.x_proj = nn.Linear(inner_dims, sum(self.split_sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner_dims)
        self.A_log = nn.Parameter(
            torch.arange(1.0, d_state + 1).log().repeat(inner_dims, 1)
        )
        self.D = nn.Parameter(torch.ones(inner_dims))
        self.direction_B = nn.Parameter(torch.empty(NUM_DIRECTIONS, d_state))
        self.norm = nn.LayerNorm(inner_dims) if with_norm else nn.Identity()
        self.act = nn.Identity() if proj == 'linear' else nn.ReLU()
        self.out_proj = PointwiseConv2d(inner_dims, embed_dims, bias)
        self.out_norm = norm(embed_dims)

        # As the release does, which undoes Mamba's initial delta bias: delta
        # starts at softplus(0) = 0.69.
        nn.init.trunc_normal_(self.x_proj.weight, std=0.02)
        nn.init.trunc_normal_(self.dt_proj.weight, std=0.02)
        nn.init.zeros_(self.dt_proj.bias)
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def scan_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x, delta, A, B, C, D and theta of the scan of a feature map.

        ``x`` has shape (batch, C, height, width).
        """
        x = F.silu(self.dwconv(self.in_norm(self.in_proj(x))))
        x = x.flatten(2).transpose(1, 2).contiguous()  # (batch, L, E)
        delta, B, C = self.x_proj(x).split(self.split_sizes, dim=-1)
        # W delta + s b, without a look into the layer; exact for s = 2
        s = self.dt_bias_scale
        delta = F.softplus(s * self.dt_proj(delta / s))
        A = -torch.exp(_at_least_float32(self.A_log))
        return x, delta, A, B, C, self.D, self.direction_B

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, shape (batch, C, height, width)."""
        height, width = x.shape[2:]
        y = multi_directional_scan(
            *self.scan_inputs(x),
            height,
            width,
            param_order=self.param_order,
            num_paths=self.num_paths,
            snake=self.snake,
            backend=self.backend,
        )
        if self.gate_proj is not None:
            y = y * F.silu(self.gate_proj(x)).flatten(2).transpose(1, 2)
        y = self.act(self.norm(y))
        y = y.transpose(1, 2).unflatten(2, (height, width))  # (batch, E, H, W)
        return self.out_norm(self.out_proj(y))
