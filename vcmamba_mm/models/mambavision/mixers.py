"""The token mixers of MambaVision's blocks: a scan, and attention."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...ops import path_scan
from ..layers import SharedScanMixer

torch.fx.wrap('path_scan')  # it looks at sizes
torch.fx.wrap('rearrange')


class MambaVisionMixer(SharedScanMixer):
    """Half of the channels are scanned (arXiv 2407.08083, fig. 3).

    Linear -> two halves, each with a depthwise convolution along the tokens
    and SiLU; one is scanned -> both -> linear. Tokens, (windows, T, C), are
    scanned once, in raster order.

    Args:
        embed_dims: Channels in and out, C.
        d_state: States per channel, N.
        conv_size: Kernel of the convolutions along the tokens.
        dt_bias_scale: How often the bias of delta is added. The released
            weights were trained with 2.
        backend: Scan backend, see ``vcmamba_mm.ops.available_backends``.

    Raises:
        ValueError: If ``backend`` is unknown, ``conv_size`` or ``embed_dims``
            of the wrong parity, or ``dt_bias_scale`` 0.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 8,
        conv_size: int = 3,
        dt_bias_scale: float = 2.0,
        backend: str = 'auto',
    ):
        super().__init__(conv_size, backend, dt_bias_scale)
        if embed_dims % 2:
            raise ValueError(
                f'arch: embed_dims of stages with mixers must be even, got '
                f'{embed_dims}'
            )
        inner_dims = embed_dims // 2

        def conv() -> nn.Conv1d:
            return nn.Conv1d(
                inner_dims,
                inner_dims,
                conv_size,
                padding=conv_size // 2,
                groups=inner_dims,
                bias=False,
            )

        self.in_proj = nn.Linear(embed_dims, embed_dims, bias=False)
        self.conv_x, self.conv_z = conv(), conv()
        self.make_scan_layers(embed_dims, inner_dims, d_state)
        self.out_proj = nn.Linear(embed_dims, embed_dims, bias=False)

    def scan_inputs(self, x: Tensor) -> dict:
        """The arguments of ``path_scan`` for tokens (windows, T, C)."""
        x, _ = self.in_proj(x).chunk(2, dim=-1)
        return self._scan_inputs(x)

    def _scan_inputs(self, x: Tensor) -> dict:
        x = F.silu(self.conv_x(x.mT)).mT
        return dict(
            **self.scan_parameters(x),
            height=1,
            width=x.shape[1],
            paths=('row',),
            snake=False,
            delta_softplus=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, shape (windows, T, C)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y = path_scan(**self._scan_inputs(x), backend=self.backend)
        z = F.silu(self.conv_z(z.mT)).mT
        return self.out_proj(torch.cat([y.to(z.dtype), z], dim=-1))


class Attention(nn.Module):
    """Attention among the tokens of a window, (windows, T, C).

    Args:
        embed_dims: Channels in and out, C.
        num_heads: Heads, of C / num_heads channels.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'arch: {num_heads} heads do not divide {embed_dims} channels'
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V of tokens (windows, T, C): (windows, heads, T, d)."""
        return rearrange(
            self.qkv(x),
            'b t (qkv heads d) -> qkv b heads t d',
            qkv=3,
            heads=self.num_heads,
        ).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(x)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(y, 'b heads t d -> b t (heads d)'))
