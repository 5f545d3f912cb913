"""The baseline: a scan of a map the way the released models do it.

A call of a selective scan for each path, in the layout (batch, channels,
tokens), with a gather of the tokens before it and the inverse gather after it.
Written from the published equations.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from vcmamba_mm.ops import mamba_ssm_scan
from vcmamba_mm.ops.scan_inputs import Options, Tensors, share


def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """One path in plain PyTorch (Mamba, arXiv 2312.00752, algorithm 2).

    In the style of mamba-ssm's function of this name: exp(delta A) and
    delta B u are stored for all tokens, (batch, channels, tokens, state), and
    a loop in Python runs over the tokens. They are taken apart by ``unbind``:
    indexing, as in mamba-ssm, makes the backward pass quadratic in the number
    of tokens.

    Args:
        u: Tokens, shape (batch, channels, tokens).
        delta: Step sizes after softplus, shape of ``u``.
        A: Negative decay rates, shape (channels, state).
        B: Input projections, shape (batch, state, tokens).
        C: Output projections, shape of ``B``.
        D: Skip connection, shape (channels,).

    Returns:
        Tensor: Shape of ``u``.
    """
    decays = torch.exp(torch.einsum('bel,en->beln', delta, A))
    inputs = torch.einsum('bel,bnl,bel->beln', delta, B, u)
    state = u.new_zeros(len(u), *A.shape)
    readouts = []
    for decay, step_input, C_t in zip(
        decays.unbind(2), inputs.unbind(2), C.unbind(2)
    ):
        state = decay * state + step_input
        readouts.append(torch.einsum('ben,bn->be', state, C_t))
    return torch.stack(readouts, dim=2) + D[:, None] * u


# What the released model runs, so what the goals are measured against.
RELEASED = dict(cpu='selective_scan_ref', cuda='selective_scan_fn')


def selective_scans(device: str) -> dict[str, Callable[..., Tensor]]:
    """The selective scans that run here, the best of them last."""
    scans = dict(selective_scan_ref=selective_scan_ref)
    if device == 'cuda' and mamba_ssm_scan.why_not() is None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        scans['selective_scan_fn'] = selective_scan_fn
    return scans


def path_by_path(
    selective_scan: Callable[..., Tensor], tensors: Tensors, options: Options
) -> Tensor:
    """As :func:`vcmamba_mm.ops.path_scan`, a selective scan for each path.

    The index tables come from the cache.
    """
    x, delta, A, B, C, D, direction_B, bias = tensors
    if bias is not None:
        delta = delta + bias
    if options.delta_softplus:
        delta = F.softplus(delta)
    x = x.mT.contiguous()
    # (batch, paths, channels or state, tokens)
    delta, B, C = (t.movedim(1, 3).contiguous() for t in (delta, B, C))
    outs = []
    for p, path in enumerate(zip(*options.tables(x.device))):
        order, inverse, direction = path
        p = p if len(A) > 1 else 0
        its = [t[:, p] for t in (delta, B, C)]
        if options.param_order == 'path':
            its = [t[:, :, order] for t in its]
        delta_p, B_p, C_p = its
        if direction_B is not None:
            B_p = B_p + direction_B[direction].t()  # (state, tokens)
        y = selective_scan(x[:, :, order], delta_p, A[p], B_p, C_p, D[p])
        outs.append(y[:, :, inverse])
    return sum(outs).mT.contiguous()


def four_scans(
    selective_scan: Callable[..., Tensor], *tensors_and_size
) -> Tensor:
    """As :func:`vcmamba_mm.ops.multi_directional_scan`, in raster order."""
    *tensors, height, width = tensors_and_size
    return path_by_path(
        selective_scan, share(Tensors(*tensors)), Options(height, width)
    )


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: None = None,
) -> Tensor:
    """``selective_scan_ref`` with the arguments of mamba-ssm's function."""
    if z is not None or return_last_state:
        raise NotImplementedError('neither a gate nor the last state')
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    tensors = (t.to(u.dtype) for t in (delta, A, B, C, D))
    return selective_scan_ref(u, *tensors)


def released_package(name: str) -> ModuleType | None:
    """A package of a release that scans on a CPU; None if it is not here.

    mamba-ssm, which it imports, needs a GPU: ``selective_scan_fn`` takes the
    place of its function.
    """
    interface = ModuleType('mamba_ssm.ops.selective_scan_interface')
    interface.selective_scan_fn = selective_scan_fn
    stand_ins = {
        module.__name__: module
        for module in (
            ModuleType('mamba_ssm'),
            ModuleType('mamba_ssm.ops'),
            interface,
        )
    }
    # mock.patch.dict would forget what is imported meanwhile
    own = {key: sys.modules[key] for key in stand_ins if key in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
    finally:
        for key in stand_ins:
            del sys.modules[key]
        sys.modules.update(own)
