"""The scan through mamba-ssm's CUDA kernel.

One call for each path, with the gathers around it that the kernel needs: the
way the released model does it. The only file that imports mamba-ssm.
"""

from torch import Tensor

from .scan_inputs import Options, Tensors

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


def mamba_ssm_scan(tensors: Tensors, options: Options) -> Tensor:
    """As ``vcmamba_mm.ops.path_scan``, float32."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def channels_first(t: Tensor) -> Tensor:
        return t.transpose(1, 2).contiguous()

    x, delta, A, B, C, D, theta, bias = tensors
    outs = []
    for p, path in enumerate(zip(*options.tables(x.device))):
        order, inverse, direction = path
        params_of = slice(None) if options.param_order == 'raster' else order
        p = p if delta.shape[2] > 1 else 0
        B_p = B[:, params_of, p]
        y = selective_scan_fn(
            channels_first(x[:, order]),
            channels_first(delta[:, params_of, p]),
            A[p],
            channels_first(B_p if theta is None else B_p + theta[direction]),
            channels_first(C[:, params_of, p]),
            None if D is None else D[p],
            delta_bias=None if bias is None else bias[p],
            delta_softplus=options.delta_softplus,
        )  # (batch, channels, tokens), in the order of the path
        outs.append(y.transpose(1, 2)[:, inverse])
    return sum(outs)
