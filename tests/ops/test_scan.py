"""The operator, and its PyTorch backend against the specification."""

import itertools

import pytest
import torch

from vcmamba_mm.ops import available_backends, multi_directional_scan
from vcmamba_mm.ops.scan import BackendError, scan_macs
from vcmamba_mm.ops.scan_paths import snake_paths

SIZES = [(1, 1), (1, 7), (7, 1), (5, 8), (7, 7), (3, 16)]
NAMES = ('x', 'delta', 'A', 'B', 'C', 'D', 'direction_B')
FAST = ['torch']  # the kernels have tests of their own


def make_inputs(
    batch=2, height=5, width=8, channels=6, states=3, dtype=torch.float64
):
    length = height * width
    tensors = (
        torch.randn(batch, length, channels),
        torch.rand(batch, length, channels) * 2,
        -torch.rand(channels, states) * 4,
        torch.randn(batch, length, states),
        torch.randn(batch, length, states),
        torch.randn(channels),
        torch.randn(5, states),
    )
    return [t.to(dtype).requires_grad_() for t in tensors]


def run_with_grads(inputs, grad_y, size, **kwargs):
    y = multi_directional_scan(*inputs, *size, **kwargs)
    return y, *torch.autograd.grad(y, inputs, grad_y.to(y.dtype))


def by_hand(x, delta, A, B, C, D, theta, height, width, param_order):
    """The recurrence once more, on NumPy scalars, written from the paper."""
    x, delta, A, B, C, D, theta = (
        t.detach().numpy() for t in (x, delta, A, B, C, D, theta)
    )
    paths = snake_paths(height, width)
    y = 0 * x
    for b, e, p in itertools.product(
        range(len(x)), range(x.shape[2]), range(4)
    ):
        h = 0 * A[e]
        for i in range(height * width):
            o, d = int(paths.order[p, i]), int(paths.direction[p, i])
            q = i if param_order == 'raster' else o
            step = delta[b, q, e]
            h = (
                2.718281828459045 ** (step * A[e]) * h
                + step * (B[b, q] + theta[d]) * x[b, o, e]
            )
            y[b, o, e] += (C[b, q] * h).sum() + D[e] * x[b, o, e]
    return torch.from_numpy(y)


@pytest.mark.parametrize('param_order', ['raster', 'path'])
def test_reference_is_the_recurrence(param_order):
    inputs = make_inputs(1, 3, 4)
    y = multi_directional_scan(
        *inputs, 3, 4, param_order=param_order, backend='reference'
    )
    torch.testing.assert_close(
        y.detach(), by_hand(*inputs, 3, 4, param_order), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize('backend', ['reference', *FAST])
@pytest.mark.parametrize('param_order', ['raster', 'path'])
def test_gradcheck(backend, param_order):
    inputs = make_inputs(1, 3, 6, 2, 2)  # longer than a chunk

    def scan(*tensors):
        return multi_directional_scan(
            *tensors, 3, 6, param_order=param_order, backend=backend
        )

    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize(
    'dtype, rtol, atol',
    [(torch.float64, 1e-9, 1e-9), (torch.float32, 2e-4, 2e-4)],
)
@pytest.mark.parametrize('param_order', ['raster', 'path'])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('batch', [1, 3])
def test_outputs_and_all_gradients(
    backend, dtype, rtol, atol, param_order, size, batch
):
    inputs = make_inputs(batch, *size)
    grad_y = torch.randn_like(inputs[0])
    expected = run_with_grads(
        inputs, grad_y, size, param_order=param_order, backend='reference'
    )
    inputs = [t.detach().to(dtype).requires_grad_() for t in inputs]
    results = run_with_grads(
        inputs, grad_y, size, param_order=param_order, backend=backend
    )
    for name, result, reference in zip(('y', *NAMES), results, expected):
        assert result.dtype == dtype
        torch.testing.assert_close(
            result.double(),
            reference,
            rtol=rtol,
            atol=atol * max(1, float(reference.detach().abs().max())),
            msg=lambda text, name=name: f'{name}: {text}',
        )


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('delta', [1e-6, 0.69, 20.0])
def test_no_nan_for_any_step_size(backend, delta):
    inputs = make_inputs(1, 7, 7, dtype=torch.float32)
    inputs[1] = torch.full_like(inputs[1], delta).requires_grad_()
    for result in run_with_grads(
        inputs, torch.randn(1, 49, 6), (7, 7), backend=backend
    ):
        assert result.isfinite().all()


@pytest.mark.parametrize('backend', FAST)
def test_non_contiguous_inputs(backend):
    inputs = make_inputs(dtype=torch.float32)
    strided = [
        t.detach().mT.contiguous().mT if t.dim() > 1 else t.detach()
        for t in inputs
    ]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        multi_directional_scan(*strided, 5, 8, backend=backend),
        multi_directional_scan(*inputs, 5, 8, backend=backend).detach(),
    )


@pytest.mark.parametrize('backend', ['reference', *FAST])
@pytest.mark.parametrize(
    'dtype, rtol, atol',
    [(torch.bfloat16, 1e-2, 1e-2), (torch.float16, 2e-3, 2e-3)],
)
def test_half_precision_computes_in_float32(backend, dtype, rtol, atol):
    inputs = [t.detach().to(dtype) for t in make_inputs()]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = multi_directional_scan(*inputs, 5, 8, backend=backend)
    assert y.dtype == dtype
    expected = multi_directional_scan(
        *(t.double() for t in inputs), 5, 8, backend='reference'
    )
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('save_states', [False, True])
def test_operator_registration(strided, save_states):
    inputs = [t.detach() for t in make_inputs(1, 3, 4, dtype=torch.float32)]
    if strided:
        inputs = [t.mT.contiguous().mT if t.dim() > 1 else t for t in inputs]
    inputs = [t.requires_grad_(save_states) for t in inputs]
    torch.library.opcheck(
        torch.ops.vcmamba_mm.scan,
        (*inputs, 3, 4, 'raster', 'torch', save_states),
    )


def test_flop_formula_counts_the_recurrence():
    inputs = [t.detach() for t in make_inputs(2, 3, 4, 6, 5)]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        multi_directional_scan(*inputs, 3, 4)
    per_token = 5 * 4 + 2
    assert counter.get_total_flops() == 2 * (4 * 2 * 12 * 6 * per_token)
    assert scan_macs(2, 12, 6, 5) == 4 * 2 * 12 * 6 * per_token


@pytest.mark.parametrize(
    'name, shape',
    [
        ('x', (2, 39, 6)),
        ('x', (40, 6)),
        ('delta', (2, 40, 5)),
        ('A', (5, 3)),
        ('B', (2, 40, 4)),
        ('C', (1, 40, 3)),
        ('D', (5,)),
        ('direction_B', (4, 3)),
    ],
)
def test_wrong_shape_names_the_argument(name, shape):
    inputs = dict(zip(NAMES, make_inputs()))
    inputs[name] = torch.randn(shape)
    with pytest.raises(ValueError, match=f'{name} must have shape'):
        multi_directional_scan(*inputs.values(), 5, 8)


def test_wrong_param_order_and_backend():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="param_order.*'rows'"):
        multi_directional_scan(*inputs, 5, 8, param_order='rows')
    with pytest.raises(ValueError, match="'cuda'.*'auto'"):
        multi_directional_scan(*inputs, 5, 8, backend='cuda')
    for backend, reason in available_backends().items():
        if reason is not None:
            with pytest.raises(BackendError, match=backend):
                multi_directional_scan(*inputs, 5, 8, backend=backend)
