"""mamba-ssm as a backend; its kernel is CUDA code, so a stand-in with the same
interface takes its place here."""

import sys
from types import ModuleType

import pytest
import torch
from test_scan import make_inputs

from vcmamba_mm.ops import available_backends, multi_directional_scan
from vcmamba_mm.ops.mamba_ssm_scan import mamba_ssm_scan
from vcmamba_mm.ops.scan import BackendError

INTERFACE = 'mamba_ssm.ops.selective_scan_interface'


def selective_scan_fn(u, delta, A, B, C, D):
    """u, delta, y: (batch, channels, tokens); B, C: (batch, state, tokens)."""
    assert all(t.is_contiguous() for t in (u, delta, B, C))
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


@pytest.mark.parametrize('param_order', ['raster', 'path'])
@pytest.mark.parametrize('size', [(1, 1), (3, 4), (5, 2)])
def test_four_calls_give_the_same(kernel, size, param_order):
    inputs = make_inputs(2, *size)
    y = mamba_ssm_scan(*inputs, *size, param_order)
    expected = multi_directional_scan(
        *inputs, *size, param_order=param_order, backend='reference'
    )
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for grad, reference in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    ):
        torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-8)


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
