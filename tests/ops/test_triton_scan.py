"""The kernels against the specification in float64.

Without a GPU they run in Triton's interpreter (see conftest.py), on small
sizes; the larger ones are marked `gpu`.
"""

import pytest
import torch
from test_scan import NAMES, make_inputs, run_with_grads

from vcmamba_mm.ops import available_backends, multi_directional_scan
from vcmamba_mm.ops.scan_paths import NUM_PATHS

reason = available_backends()['triton']
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

HAS_GPU = torch.cuda.is_available()
DEVICE = 'cuda' if HAS_GPU else 'cpu'
# (batch, height, width, channels, states): one token, one row, one column,
# lengths that are no multiple of the chunk, channels of no multiple of a tile
SMALL = [(1, 1, 1, 3, 1), (2, 1, 7, 4, 4), (1, 5, 1, 17, 2), (2, 2, 3, 5, 3)]
LARGE = [
    (b, h, w, channels, states)
    for b in (1, 3)
    for h, w in ((7, 7), (5, 8), (16, 16), (31, 33))
    for channels, states in ((40, 16), (96, 32), (1024, 16), (33, 8))
]
SIZES = SMALL + [pytest.param(size, marks=pytest.mark.gpu) for size in LARGE]


def on_device(tensors, dtype=torch.float32):
    return [t.detach().to(DEVICE, dtype).requires_grad_() for t in tensors]


def check(results, expected, rtol, atol):
    for name, result, reference in zip(('y', *NAMES), results, expected):
        largest = max(1, float(reference.detach().abs().max()))
        torch.testing.assert_close(
            result.double().cpu(),
            reference,
            rtol=rtol,
            atol=atol * largest,
            msg=lambda text, name=name: f'{name}: {text}',
        )


@pytest.mark.parametrize('param_order', ['raster', 'path'])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_outputs_and_all_gradients(size, param_order, poisoned_memory):
    inputs = make_inputs(*size)
    grad_y = torch.randn_like(inputs[0])
    expected = run_with_grads(
        inputs, grad_y, size[1:3], backend='reference', param_order=param_order
    )
    results = run_with_grads(
        on_device(inputs),
        grad_y.to(DEVICE),
        size[1:3],
        backend='triton',
        param_order=param_order,
    )
    check(results, expected, rtol=2e-4, atol=2e-4)


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fill new memory with NaN: what a kernel does not write shows."""
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        memory = new_empty(*args, **kwargs)
        return (
            memory.fill_(float('nan'))
            if memory.is_floating_point()
            else (memory)
        )

    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoned)


@pytest.mark.parametrize(
    'dtype, rtol, atol',
    [
        (torch.bfloat16, 2e-2, 2e-2),
        (torch.float16, 2e-3, 2e-3),
        (torch.float64, 1e-9, 1e-9),
    ],
)
def test_other_dtypes(dtype, rtol, atol):
    inputs = [
        t.detach().to(dtype).double().requires_grad_()
        for t in make_inputs(1, 2, 3, 5, 4)
    ]
    grad_y = torch.randn_like(inputs[0]).to(dtype).double()
    expected = run_with_grads(inputs, grad_y, (2, 3), backend='reference')
    results = run_with_grads(
        on_device(inputs, dtype), grad_y.to(DEVICE), (2, 3), backend='triton'
    )
    assert {r.dtype for r in results} == {dtype}
    check(results, expected, rtol, atol)


def test_non_contiguous_inputs():
    inputs = make_inputs(2, 2, 3, 5, 3, dtype=torch.float32)
    strided = [
        t.detach().mT.contiguous().mT if t.dim() > 1 else t.detach()
        for t in inputs
    ]
    assert not strided[0].is_contiguous()
    grad_y = torch.randn_like(inputs[0]).mT.contiguous().mT
    expected = run_with_grads(inputs, grad_y, (2, 3), backend='reference')
    results = run_with_grads(
        on_device(strided), grad_y.to(DEVICE), (2, 3), backend='triton'
    )
    check(results, [e.double().cpu() for e in expected], 2e-4, 2e-4)


@pytest.mark.parametrize('delta', [1e-6, 20.0])
def test_no_nan_for_any_step_size(delta):
    inputs = on_device(make_inputs(1, 3, 4))
    inputs[1] = torch.full_like(inputs[1], delta).requires_grad_()
    for result in run_with_grads(
        inputs, torch.randn_like(inputs[0]), (3, 4), backend='triton'
    ):
        assert result.isfinite().all()


def test_same_result_every_time():
    inputs = on_device(make_inputs(2, 3, 4, 20, 4))
    grad_y = torch.randn_like(inputs[0])
    first, second = (
        run_with_grads(inputs, grad_y, (3, 4), backend='triton')
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.gpu
def test_agrees_with_torch_on_long_sequences():
    inputs = on_device(make_inputs(1, 64, 64, 64, 16))
    grad_y = torch.randn_like(inputs[0])
    results, expected = (
        run_with_grads(inputs, grad_y, (64, 64), backend=backend)
        for backend in ('triton', 'torch')
    )
    check(results, [e.double().cpu() for e in expected], 2e-4, 2e-4)


def test_operator_registration():
    inputs = [t.detach() for t in on_device(make_inputs(1, 1, 2, 3, 2))]
    torch.library.opcheck(
        torch.ops.vcmamba_mm.scan, (*inputs, 1, 2, 'raster', 'triton', False)
    )
    assert multi_directional_scan(*inputs, 1, 2, backend='triton').shape == (
        1,
        2,
        3,
    )
    assert NUM_PATHS == 4  # the kernels unroll them
