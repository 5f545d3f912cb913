"""The token mixer of PlainMamba's layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import path_scan
from ...ops.scan_paths import NUM_DIRECTIONS
from ..layers import SharedScanMixer, init_delta_bias

torch.fx.wrap('path_scan')  # it looks at sizes


class PlainMambaMixer(SharedScanMixer):
    """Gated scan along four snake paths (arXiv 2403.17695).

    Linear -> two halves; one passes a depthwise convolution, SiLU and the
    scan, and is multiplied by SiLU of the other -> linear. The scan is that of
    VCMamba: delta, B and C are those of raster position i at step i of every
    path. Tokens are (batch, H, W, C).

    Args:
        embed_dims: Channels in and out, C.
        d_state: States per channel, N.
        expand: Inner channels over ``embed_dims``; E = expand * C.
        conv_size: Kernel of the depthwise convolution.
        dt_bias_scale: How often the bias of delta is added. The released
            weights were trained with 2.
        backend: Scan backend, see ``vcmamba_mm.ops.available_backends``.

    Raises:
        ValueError: If ``backend`` is unknown, ``conv_size`` even, or
            ``dt_bias_scale`` 0.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 16,
        expand: int = 2,
        conv_size: int = 7,
        dt_bias_scale: float = 2.0,
        backend: str = 'auto',
    ):
        super().__init__(conv_size, backend, dt_bias_scale)
        inner_dims = expand * embed_dims
        self.in_proj = nn.Linear(embed_dims, 2 * inner_dims)
        self.dwconv = nn.Conv2d(
            inner_dims,
            inner_dims,
            conv_size,
            padding=conv_size // 2,
            groups=inner_dims,
        )
        self.make_scan_layers(embed_dims, inner_dims, d_state)
        self.direction_B = nn.Parameter(torch.empty(NUM_DIRECTIONS, d_state))
        self.out_proj = nn.Linear(inner_dims, embed_dims)
        # Linear layers have PyTorch's initial values, and Mamba's.
        init_delta_bias(self.dt_proj.bias)
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def scan_inputs(self, x: Tensor) -> dict:
        """The arguments of ``path_scan`` for tokens (batch, H, W, C)."""
        x, _ = self.in_proj(x).chunk(2, dim=-1)
        return self._scan_inputs(x)

    def _scan_inputs(self, x: Tensor) -> dict:
        height, width = x.shape[1:3]
        x = F.silu(self.dwconv(x.movedim(-1, 1)))
        params = self.scan_parameters(x.movedim(1, -1).flatten(1, 2))
        params['delta'] = F.softplus(params['delta'])
        return dict(
            **params,
            height=height,
            width=width,
            direction_B=self.direction_B,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, shape (batch, height, width, C)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y = path_scan(**self._scan_inputs(x), backend=self.backend)
        return self.out_proj(y.unflatten(1, z.shape[1:3]) * F.silu(z))
