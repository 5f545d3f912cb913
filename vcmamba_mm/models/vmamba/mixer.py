"""The token mixer of VMamba's blocks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import path_scan
from ..layers import (
    ScanMixer,
    decay_rates,
    init_delta_bias,
    is_float32_on_cpu,
)

torch.fx.wrap('path_scan')  # it looks at sizes
torch.fx.wrap('decay_rates')  # it looks at a dtype

# In the order of the parameters.
PATHS = ('row', 'column', 'row_reverse', 'column_reverse')


@torch.fx.wrap  # it looks at a dtype
def _path_linear(x: Tensor, weight: Tensor) -> Tensor:
    if is_float32_on_cpu(x) and not torch.is_grad_enabled():
        # Straight to where the scan reads it: a copy takes several times as
        # long as the product.
        y = x.new_empty(*x.shape[:-1], weight.shape[1])
        tokens, out = x.flatten(0, -3), y.flatten(0, -3)
        for path, its in enumerate(weight):
            torch.mm(tokens[:, path], its.mT, out=out[:, path])
        return y
    y = x.movedim(-2, 0).flatten(1, -2) @ weight.mT
    return y.unflatten(1, x.shape[:-2]).movedim(0, -2)


class PathLinear(nn.Module):
    """A linear map for each path: (..., paths, in) -> (..., paths, out)."""

    def __init__(self, num_paths: int, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(num_paths, out_channels, in_channels)
        )
        bound = in_channels**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return _path_linear(x, self.weight)


class SS2D(ScanMixer):
    """2D selective scan (arXiv 2401.10166) of tokens (batch, H, W, C).

    Linear -> depthwise conv -> SiLU -> scan -> LayerNorm -> linear. The four
    paths run through all rows, all columns, and both in reverse, each with
    parameters of its own, which are those of the token visited.

    Args:
        embed_dims: Channels in and out, C.
        d_state: States per channel, N.
        expand: Inner channels over ``embed_dims``; E = int(expand * C).
        conv_size: Kernel of the depthwise convolution.
        backend: Scan backend, see ``vcmamba_mm.ops.available_backends``.

    Raises:
        ValueError: If ``backend`` is unknown, or ``conv_size`` even.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 1,
        expand: float = 1.0,
        conv_size: int = 3,
        backend: str = 'auto',
    ):
        super().__init__(conv_size, backend)
        num_paths, dt_rank = len(PATHS), math.ceil(embed_dims / 16)
        inner_dims = int(expand * embed_dims)
        self.in_proj = nn.Linear(embed_dims, inner_dims, bias=False)
        self.dwconv = nn.Conv2d(
            inner_dims,
            inner_dims,
            conv_size,
            padding=conv_size // 2,
            groups=inner_dims,
            bias=False,
        )
        self.split_sizes = (dt_rank, d_state, d_state)
        self.x_proj = nn.Linear(
            inner_dims, num_paths * sum(self.split_sizes), bias=False
        )
        self.dt_proj = PathLinear(num_paths, dt_rank, inner_dims)
        # Weight decay tells parameters apart by their dimensions: it acts on
        # the bias of delta, and not on D, which is flat.
        self.dt_bias = nn.Parameter(torch.empty(num_paths, inner_dims))
        self.A_log = nn.Parameter(
            torch.arange(1.0, d_state + 1)
            .log()
            .repeat(num_paths, inner_dims, 1)
        )
        self.D = nn.Parameter(torch.ones(num_paths * inner_dims))
        self.norm = nn.LayerNorm(inner_dims)
        self.out_proj = nn.Linear(inner_dims, embed_dims, bias=False)

        for linear in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        bound = inner_dims**-0.5
        nn.init.uniform_(self.x_proj.weight, -bound, bound)
        init_delta_bias(self.dt_bias)

    def scan_inputs(self, x: Tensor) -> dict:
        """The arguments of ``path_scan`` for tokens (batch, H, W, C)."""
        height, width = x.shape[1:3]
        x = self.in_proj(x).movedim(-1, 1)
        x = F.silu(self.dwconv(x)).movedim(1, -1).flatten(1, 2)
        params = self.x_proj(x).unflatten(2, (len(PATHS), -1))
        delta, B, C = params.split(self.split_sizes, dim=-1)
        return dict(
            x=x,
            delta=self.dt_proj(delta),
            A=decay_rates(self.A_log),
            B=B,
            C=C,
            D=self.D.unflatten(0, (len(PATHS), -1)),
            height=height,
            width=width,
            paths=PATHS,
            snake=False,
            param_order='path',
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, shape (batch, height, width, C)."""
        y = path_scan(**self.scan_inputs(x), backend=self.backend)
        return self.out_proj(self.norm(y)).unflatten(1, x.shape[1:3])
