"""The token mixer of the MDM block."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor

from ...ops import path_scan
from ...ops.scan_inputs import PARAM_ORDERS
from ...ops.scan_paths import NUM_DIRECTIONS, NUM_PATHS, PATHS
from ..layers import PointwiseConv2d, SharedScanMixer

torch.fx.wrap('path_scan')  # it looks at sizes

PROJECTIONS = ('conv_norm', 'conv', 'linear')


class MultiDirectionalMamba(SharedScanMixer):
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
            norms ('conv'), or linear maps with a bias ('linear', as in
            PlainMamba).
        gate: Multiply what the scan gives by SiLU of a third projection, as
            Mamba and PlainMamba do.
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
        super().__init__(conv_size, backend, dt_bias_scale)
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
        norm_cfg = norm_cfg or dict(type='BN')
        inner_dims = expand * embed_dims
        self.param_order = param_order
        self.paths = PATHS[:num_paths]
        self.snake = snake

        def norm(channels: int) -> nn.Module:
            if proj != 'conv_norm':
                return nn.Identity()
            return build_norm_layer(norm_cfg, channels)[1]

        self.in_proj = PointwiseConv2d(embed_dims, inner_dims)
        self.in_norm = norm(inner_dims)
        self.gate_proj = None
        if gate:
            self.gate_proj = PointwiseConv2d(embed_dims, inner_dims)
        self.dwconv = nn.Conv2d(
            inner_dims,
            inner_dims,
            conv_size,
            padding=conv_size // 2,
            groups=inner_dims,
        )
        self.make_scan_layers(embed_dims, inner_dims, d_state)
        self.direction_B = nn.Parameter(torch.empty(NUM_DIRECTIONS, d_state))
        self.norm = nn.LayerNorm(inner_dims) if with_norm else nn.Identity()
        self.act = nn.Identity() if proj == 'linear' else nn.ReLU()
        self.out_proj = PointwiseConv2d(inner_dims, embed_dims)
        self.out_norm = norm(embed_dims)

        # As the release does, which undoes Mamba's initial delta bias: delta
        # starts at softplus(0) = 0.69.
        nn.init.trunc_normal_(self.x_proj.weight, std=0.02)
        nn.init.trunc_normal_(self.dt_proj.weight, std=0.02)
        nn.init.zeros_(self.dt_proj.bias)
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def scan_inputs(self, x: Tensor) -> dict:
        """The arguments of ``path_scan`` for a map (batch, C, height, width).

        All paths share the parameters.
        """
        height, width = x.shape[2:]
        x = F.silu(self.dwconv(self.in_norm(self.in_proj(x))))
        x = x.flatten(2).transpose(1, 2).contiguous()  # (batch, L, E)
        params = self.scan_parameters(x)
        params['delta'] = F.softplus(params['delta'])
        return dict(
            **params,
            height=height,
            width=width,
            paths=self.paths,
            snake=self.snake,
            param_order=self.param_order,
            direction_B=self.direction_B,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, shape (batch, C, height, width)."""
        height, width = x.shape[2:]
        y = path_scan(**self.scan_inputs(x), backend=self.backend)
        if self.gate_proj is not None:
            y = y * F.silu(self.gate_proj(x)).flatten(2).transpose(1, 2)
        y = self.act(self.norm(y))
        y = y.transpose(1, 2).unflatten(2, (height, width))  # (batch, E, H, W)
        return self.out_norm(self.out_proj(y))
