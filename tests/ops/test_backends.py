"""Every backend against the specification in float64.

Without a GPU the Triton kernels run in Triton's interpreter, which takes
0.02 s for a token forwards and backwards: where that adds up, a test waits
for a GPU. What runs crosses the borders of chunks (of four steps) and tiles,
and ends anywhere in them. mamba-ssm's kernel waits too; test_mamba_ssm_scan.py
tests what is around it.
"""

import pytest
import torch
from scan_cases import (
    PARAM_ORDERS,
    Case,
    assert_close,
    make_inputs,
    random_case,
    run_with_grads,
)

from vcmamba_mm.ops import available_backends, multi_directional_scan

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
WHY_NOT = available_backends()
SIZES = [(1, 1), (1, 7), (7, 1), (3, 3), (3, 5), (7, 7), (16, 16), (31, 33)]
# No multiples of a tile.
CHANNELS = 5


def backend(name, *others, gpu=False):
    """A parameter (name, *others) with the marks that the backend needs."""
    if name == 'mamba_ssm':
        gpu = True
    reason = WHY_NOT[name]
    if name == 'numba' and DEVICE != 'cpu':
        reason = 'runs on CPUs, see test_path_scan.py'
    marks = [pytest.mark.skipif(reason is not None, reason=str(reason))]
    return pytest.param(name, *others, marks=[pytest.mark.gpu] * gpu + marks)


OURS = [backend('torch'), backend('numba'), backend('triton')]
BACKENDS = [*OURS, backend('mamba_ssm')]


def grid(values):
    """Each backend with each value in each order; the interpreter with each
    value in one order, by turns.
    """
    return [
        backend(name, value, order, gpu=name == 'triton' and i % 2 != j)
        for name in ('torch', 'numba', 'triton', 'mamba_ssm')
        for i, value in enumerate(values)
        for j, order in enumerate(PARAM_ORDERS)
    ]


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """New memory is filled with NaN: what is not written to shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    'name, size, batch, param_order',
    [
        backend(
            name,
            size,
            batch,
            param_order,
            gpu=name == 'triton' and batch * size[0] * size[1] > 15,
        )
        for name in ('torch', 'numba', 'triton', 'mamba_ssm')
        for size in SIZES
        for batch in (1, 3)
        for param_order in PARAM_ORDERS
    ],
)
def test_every_size(name, size, batch, param_order):
    case = random_case(param_order, batch, *size, CHANNELS, 4)
    case.check(name, DEVICE)


@pytest.mark.parametrize('param_order', PARAM_ORDERS)
@pytest.mark.parametrize(
    'num_paths, snake',
    [(1, True), (2, True), (3, True), (1, False), (4, False)],
)
@pytest.mark.parametrize('name', BACKENDS)
def test_every_set_of_paths(name, num_paths, snake, param_order):
    size = (2, 3) if name == 'triton' else (5, 8)
    case = random_case(
        param_order, 2, *size, CHANNELS, 4, num_paths=num_paths, snake=snake
    )
    case.check(name, DEVICE)


@pytest.mark.parametrize(
    'name, states, param_order', grid([1, 3, 4, 8, 16, 32])
)
def test_every_number_of_states(name, states, param_order):
    # 19 channels: more than a tile of the backward kernel
    random_case(param_order, 1, 2, 3, 19, states).check(name, DEVICE)


@pytest.mark.parametrize('channels', [1, 33, 576, 1024])
@pytest.mark.parametrize(
    'name',
    [
        backend('torch'),
        backend('numba'),
        backend('triton', gpu=True),
        backend('mamba_ssm'),
    ],
)
def test_every_number_of_channels(name, channels):
    random_case('raster', 2, 3, 4, channels, 16).check(name, DEVICE)


@pytest.mark.parametrize('param_order', PARAM_ORDERS)
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize('name', [backend('reference'), *OURS])
def test_every_dtype(name, dtype, param_order):
    random_case(param_order, 2, 2, 3, CHANNELS, 4, dtype).check(
        name, DEVICE, dtype
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', [backend('reference'), *BACKENDS])
def test_half_precision_under_autocast(name, dtype):
    """Projections in half precision, the rest and the result in float32."""
    case = random_case('raster', 2, 2, 3, CHANNELS, 4, dtype)
    inputs = [
        t.detach().to(DEVICE, dtype if half else torch.float32)
        for t, half in zip(case.inputs, (1, 0, 0, 1, 1, 0, 0))
    ]
    with torch.autocast(DEVICE, dtype):
        y, *grads = run_with_grads(
            [t.requires_grad_() for t in inputs],
            case.grad_y.to(DEVICE),
            case.size,
            backend=name,
        )
    assert y.dtype == torch.float32
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    assert_close((y, *grads), case.expected)


@pytest.mark.parametrize(
    'name, delta, param_order', grid([1e-6, 1e-3, 0.69, 20.0, 'any'])
)
def test_every_step_size(name, delta, param_order):
    """No NaN, no Inf, and what the states add is not lost."""
    x, _, _, B, C, D, direction_B = make_inputs(1, 2, 4, CHANNELS, 16)
    if delta == 'any':
        delta = 10 ** torch.empty_like(x).uniform_(-6, 1.3)  # 1e-6 to 20
    else:
        delta = torch.full_like(x, delta)
    # The released model's decay rates; exp(delta A) underflows with them.
    A = -torch.arange(1.0, 17).expand(CHANNELS, 16)
    # Without the skip connection y is of the size that the states have.
    inputs = (x, delta, A, B, C, 0 * D, direction_B)
    Case.of(inputs, (2, 4), param_order).check(name, DEVICE)


def transposed(t):
    return t.mT.contiguous().mT if t.dim() > 1 else t


def every_second(t):
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def part_of_larger(t):
    return torch.cat([t, t], dim=-1).narrow(-1, 0, t.shape[-1])


LAYOUTS = [torch.clone, transposed, every_second, part_of_larger]


@pytest.mark.parametrize('first', range(len(LAYOUTS)))
@pytest.mark.parametrize('name', BACKENDS)
def test_every_memory_layout(name, first):
    """Tensors of the same shape get different strides."""
    case = random_case('path', 2, 2, 3, CHANNELS, 4)
    layouts = (LAYOUTS[first:] + LAYOUTS[:first]) * 2
    case.check(name, DEVICE, layouts=layouts)


@pytest.mark.parametrize('name', BACKENDS)
def test_broadcast_inputs(name):
    """Expanded tensors, with strides of 0."""
    inputs = make_inputs(2, 2, 3, CHANNELS, 4)
    inputs = [
        t[:1].expand_as(t) if t.dim() == 3 else t.detach() for t in inputs
    ]
    case = Case.of(inputs, (2, 3), 'raster')
    tensors = [t.detach().to(DEVICE, torch.float32) for t in case.inputs]
    y = multi_directional_scan(
        *(t[:1].expand_as(t) if t.dim() == 3 else t for t in tensors),
        2,
        3,
        backend=name,
    )
    assert_close([y], case.expected)


@pytest.mark.parametrize(
    'name', [backend('torch'), backend('numba'), backend('triton', gpu=True)]
)
def test_same_gradients_every_time(name):
    """Several threads, or programs, and PyTorch's deterministic mode."""
    torch.set_num_threads(2)
    inputs = [
        t.detach().to(DEVICE, torch.float32).requires_grad_()
        for t in make_inputs(8, 16, 16, 64, 16)
    ]
    grad_y = torch.randn_like(inputs[0])
    first, *others = (
        run_with_grads(inputs, grad_y, (16, 16), backend=name)
        for _ in range(4)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize('name', OURS)
def test_nothing_to_do_for_an_empty_batch(name):
    inputs = [
        t.detach().to(DEVICE).requires_grad_()
        for t in make_inputs(0, 2, 3, CHANNELS, 4)
    ]
    grad_y = torch.empty_like(inputs[0])
    y, *grads = run_with_grads(inputs, grad_y, (2, 3), backend=name)
    assert y.shape == (0, 6, CHANNELS)
    assert all(not g.any() for g in grads)


@pytest.mark.parametrize('param_order', PARAM_ORDERS)
@pytest.mark.parametrize(
    'name', [backend('triton', gpu=True), backend('mamba_ssm')]
)
def test_long_sequences(name, param_order):
    """4096 tokens against the PyTorch backend, which is tested above."""
    inputs = make_inputs(1, 64, 64, 64, 16, torch.float32)
    grad_y = torch.randn_like(inputs[0]).to(DEVICE)
    results, expected = (
        run_with_grads(
            [t.detach().to(DEVICE, dtype).requires_grad_() for t in inputs],
            grad_y,
            (64, 64),
            backend=contestant,
            param_order=param_order,
        )
        for contestant, dtype in (
            (name, torch.float32),
            ('torch', torch.float64),
        )
    )
    assert_close(results, [e.cpu() for e in expected])
