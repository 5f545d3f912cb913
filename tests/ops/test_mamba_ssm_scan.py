"""mamba-ssm as a backend; its kernel is CUDA code, so a stand-in with the same
interface takes its place here."""

import sys
from types import ModuleType

import pytest
import torch
from scan_cases import PARAM_ORDERS, assert_close, make_inputs, random_case

from vcmamba_mm.ops import available_backends, multi_directional_scan
from vcmamba_mm.ops.backends import BackendError
from vcmamba_mm.ops.mamba_ssm_scan import mamba_ssm_scan
from vcmamba_mm.ops.scan_inputs import Options, Tensors, share
from vcmamba_mm.ops.scan_paths import PATHS

INTERFACE = 'mamba_ssm.ops.selective_scan_interface'


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False
):
    """u, delta, y: (batch, channels, tokens); B, C: (batch, state, tokens)."""
    assert all(t.is_contiguous() for t in (u, delta, B, C))
    assert z is delta_bias is None and not delta_softplus
    state, y = 0, []
    for i in range(u.shape[2]):
        step = delta[:, :, i, None]
        state = (
            torch.exp(step * A) * state
            + step * B[:, None, :, i] * u[:, :, i, None]
        )
        y.append((state * C[:, None, :, i]).sum(-1) + D * u[:, :, i])
    return torch.stack(y, dim=2)


@pytest.fixture
def kernel(monkeypatch):
    for name in ('selective_scan_cuda', 'mamba_ssm', 'mamba_ssm.ops'):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    interface = ModuleType(INTERFACE)
    interface.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, INTERFACE, interface)


@pytest.mark.parametrize('param_order', PARAM_ORDERS)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('num_paths, snake', [(4, True), (2, False)])
@pytest.mark.parametrize(
    'size', [(1, 1), (1, 7), (7, 1), (5, 8), (7, 7), (16, 16)]
)
def test_a_call_for_each_path_gives_the_same(
    kernel, size, batch, param_order, num_paths, snake
):
    case = random_case(
        param_order, batch, *size, 5, 4, num_paths=num_paths, snake=snake
    )
    options = Options(*size, PATHS[:num_paths], snake, param_order)
    y = mamba_ssm_scan(share(Tensors(*case.inputs)), options)
    grads = torch.autograd.grad(y, case.inputs, case.grad_y)
    assert_close((y.detach(), *grads), case.expected)


def test_needs_a_gpu(kernel):
    assert available_backends()['mamba_ssm'] is None
    with pytest.raises(BackendError, match='mamba_ssm.*the input is on cpu'):
        multi_directional_scan(*make_inputs(), 5, 8, backend='mamba_ssm')


@pytest.mark.parametrize('broken', ['selective_scan_cuda', INTERFACE])
def test_missing_or_broken_build_is_reported(kernel, monkeypatch, broken):
    monkeypatch.setitem(sys.modules, broken, None)  # its import fails
    reason = available_backends()['mamba_ssm']
    assert broken in reason and 'MAMBA_KEEP_CUDA_BUILD=TRUE' in reason
    with pytest.raises(BackendError, match='MAMBA_KEEP_CUDA_BUILD'):
        multi_directional_scan(*make_inputs(), 5, 8, backend='mamba_ssm')
    multi_directional_scan(*make_inputs(), 5, 8)  # nothing else changes
