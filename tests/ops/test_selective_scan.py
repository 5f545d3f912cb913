"""``selective_scan`` on the cases of state-spaces/mamba's own tests.

Its complex A, groups of B and C, gate and last state are not ours.
"""

from itertools import product

import pytest
import torch
from scan_cases import TOLERANCES
from test_backends import DEVICE, backend

from vcmamba_mm.ops import selective_scan

BACKENDS = ('torch', 'numba', 'triton')
NAMES = ('x', 'delta', 'A', 'B', 'C', 'D', 'delta_bias')


def cases(*values):
    """Each backend with each of the values."""
    return [
        backend(name, *its, gpu=name == 'triton')
        for name in BACKENDS
        for its in product(*values)
    ]


def formula(x, delta, A, B, C, D=None, delta_bias=None, *, softplus, reverse):
    """h_t = exp(delta A) h_{t-1} + delta B x, y = C h + D x."""
    if delta_bias is not None:
        delta = delta + delta_bias
    if softplus:
        delta = (1 + delta.exp()).log()
    decays = torch.exp(delta[..., None] * A).unbind(1)
    writes = ((delta * x)[..., None] * B[:, :, None]).unbind(1)
    h, states = 0, []
    for t in reversed(range(len(decays))) if reverse else range(len(decays)):
        h = decays[t] * h + writes[t]
        states.append(h)
    states = torch.stack(states[::-1] if reverse else states, 1)
    y = (states * C[:, :, None]).sum(-1)
    return y if D is None else y + D * x


def inputs(length, batch=2, channels=4, state=8, varying='BC', without=()):
    """In the ranges of mamba's tests; what does not vary is one for all."""
    b, c = (
        torch.randn(batch, length if name in varying else 1, state)
        for name in 'BC'
    )
    tensors = dict(
        x=torch.randn(batch, length, channels),
        delta=0.5 * torch.rand(batch, length, channels),
        A=-0.5 * torch.rand(channels, state),
        B=b.expand(-1, length, -1),
        C=c.expand(-1, length, -1),
        D=torch.randn(channels),
        delta_bias=0.5 * torch.rand(channels),
    )
    return {k: t for k, t in tensors.items() if k not in without}


def check(name, tensors, dtype, softplus, reverse):
    """y and all gradients, of parameters in float32 and inputs in dtype."""
    given, exact = {}, {}
    for key, tensor in tensors.items():
        kind = torch.float32 if key in ('A', 'D', 'delta_bias') else dtype
        given[key] = tensor.to(DEVICE, kind).requires_grad_()
        exact[key] = tensor.to(kind).double().requires_grad_()
    y = selective_scan(
        **given, delta_softplus=softplus, reverse=reverse, backend=name
    )
    assert y.dtype == dtype
    grad_y = torch.randn(y.shape).to(dtype)
    expected = formula(**exact, softplus=softplus, reverse=reverse)
    grads = torch.autograd.grad(y, list(given.values()), grad_y.to(DEVICE))
    exact_grads = torch.autograd.grad(
        expected, list(exact.values()), grad_y.double()
    )
    for key, result, its in zip(
        ('y', *given), (y, *grads), (expected, *exact_grads)
    ):
        rtol, atol = TOLERANCES[result.dtype]
        torch.testing.assert_close(
            result.double().cpu(),
            its,
            rtol=rtol,
            atol=atol * float(its.detach().abs().max()),
            msg=lambda text, key=key: f'{key}: {text}',
        )


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(
    'name, length', cases([1, 8, 41, 128, 256, 512, 1024, 2048, 4096])
)
def test_every_length(name, length, reverse):
    tensors = inputs(length, batch=1 if length > 512 else 2)
    check(name, tensors, torch.float32, True, reverse)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('softplus', [False, True])
@pytest.mark.parametrize(
    'without', [(), ('D',), ('delta_bias',), ('D', 'delta_bias')], ids=str
)
@pytest.mark.parametrize(
    'name, dtype', cases([torch.float32, torch.bfloat16, torch.float16])
)
def test_every_option_and_dtype(name, dtype, without, softplus, reverse):
    tensors = inputs(128, without=without)
    check(name, tensors, dtype, softplus, reverse)


@pytest.mark.parametrize('name, varying', cases(['', 'B', 'C']))
def test_projections_that_do_not_vary(name, varying):
    check(name, inputs(128, varying=varying), torch.float32, True, False)


@pytest.mark.parametrize('name', [backend('numba')])
def test_as_many_tokens_as_mambavision_has(name):
    """In the windows of its segmenter S, 160 x 160."""
    tensors = inputs(160 * 160, batch=1, channels=8)
    check(name, tensors, torch.float32, True, False)
