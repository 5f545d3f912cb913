"""The multi-directional scan through mamba-ssm's CUDA kernel.

One call for each path, with the gathers around it that the kernel needs: the
way the released model does it. The only file that imports mamba-ssm.
"""

from torch import Tensor

from .scan_paths import scan_paths

BUILD = (
    'MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE '
    'pip install --no-build-isolation mamba-ssm'
)


def why_not() -> str | None:
    """Why it cannot be used here: a package may come without its kernel."""
    try:
        import selective_scan_cuda  # noqa: F401
        from mamba_ssm.ops.selective_scan_interface import (  # noqa: F401
            selective_scan_fn,
        )
    except (ImportError, OSError) as error:
        return f"mamba-ssm's kernel cannot be imported ({error}): {BUILD}"
    return None


def mamba_ssm_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    direction_B: Tensor,
    height: int,
    width: int,
    param_order: str,
    num_paths: int,
    snake: bool,
) -> Tensor:
    """As ``vcmamba_mm.ops.multi_directional_scan``, float32."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def channels_first(t: Tensor) -> Tensor:
        return t.transpose(1, 2).contiguous()

    paths = scan_paths(height, width, x.device, num_paths, snake)
    outs = []
    for order, inverse, direction in zip(*paths):
        params_of = slice(None) if param_order == 'raster' else order
        y = selective_scan_fn(
            channels_first(x[:, order]),
            channels_first(delta[:, params_of]),
            A,
            channels_first(B[:, params_of] + direction_B[direction]),
            channels_first(C[:, params_of]),
            D,
        )  # (batch, channels, tokens), in the order of the path
        outs.append(y.transpose(1, 2)[:, inverse])
    return sum(outs)
