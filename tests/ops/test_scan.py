"""The specification, and the operator around the backends."""

import itertools

import pytest
import torch
from scan_cases import NAMES, PARAM_ORDERS, make_inputs

from vcmamba_mm.ops import available_backends, multi_directional_scan
from vcmamba_mm.ops.backends import BackendError
from vcmamba_mm.ops.scan_inputs import Tensors, share
from vcmamba_mm.ops.scan_operator import scan_macs
from vcmamba_mm.ops.scan_paths import PATHS, scan_paths


def by_hand(
    x, delta, A, B, C, D, theta, height, width, param_order, num_paths, snake
):
    """The recurrence once more, on NumPy scalars, written from the paper."""
    x, delta, A, B, C, D, theta = (
        t.detach().numpy() for t in (x, delta, A, B, C, D, theta)
    )
    paths = scan_paths(height, width, paths=PATHS[:num_paths], snake=snake)
    y = 0 * x
    for b, e, p in itertools.product(
        range(len(x)), range(x.shape[2]), range(num_paths)
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


@pytest.mark.parametrize(
    'num_paths, snake', [(4, True), (4, False), (1, True)]
)
@pytest.mark.parametrize('param_order', PARAM_ORDERS)
def test_reference_is_the_recurrence(param_order, num_paths, snake):
    inputs = make_inputs(1, 3, 4)
    options = dict(param_order=param_order, num_paths=num_paths, snake=snake)
    y = multi_directional_scan(*inputs, 3, 4, **options, backend='reference')
    torch.testing.assert_close(
        y.detach(), by_hand(*inputs, 3, 4, **options), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('param_order', PARAM_ORDERS)
def test_gradcheck(backend, param_order):
    inputs = make_inputs(1, 3, 6, 2, 2)  # longer than a chunk

    def scan(*tensors):
        return multi_directional_scan(
            *tensors, 3, 6, param_order=param_order, backend=backend
        )

    assert torch.autograd.gradcheck(scan, inputs)


# no bias, the paths, snakes, whose parameters, no softplus
REST = (None, ' '.join(PATHS), True, 'raster', False)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('save_states', [False, True])
def test_operator_registration(strided, save_states, dtype):
    inputs = [t.detach() for t in make_inputs(1, 3, 4, dtype=dtype)]
    if strided:
        inputs = [t.mT.contiguous().mT if t.dim() > 1 else t for t in inputs]
    x, *others = share(Tensors(*inputs))[:7]
    others = [t.detach().requires_grad_(save_states) for t in others]
    x = x.detach().unflatten(1, (3, 4)).requires_grad_(save_states)
    torch.library.opcheck(
        torch.ops.vcmamba_mm.scan,
        (x, *others, *REST, 'torch', save_states),
    )


@pytest.mark.parametrize('backend', ['torch', 'auto'])
def test_gradients_have_the_dtypes_that_are_traced(backend):
    """Autograd would cast them, a compiled graph does not."""
    inputs = share(Tensors(*(t.detach() for t in make_inputs(1, 3, 4))))
    x, *others = inputs.to(torch.bfloat16)[:7]
    given = (x.unflatten(1, (3, 4)), others[0], others[1].float(), *others[2:])
    y, saved = torch.ops.vcmamba_mm.scan(*given, *REST, backend, True)
    args = (y, saved, *given, *REST, backend)
    grads = torch.ops.vcmamba_mm.scan_backward(*args)
    for grad, t in zip(grads, given):
        assert t is None or grad.dtype == t.dtype
    torch.library.opcheck(
        torch.ops.vcmamba_mm.scan_backward,
        args,
        test_utils='test_faketensor',
    )


@pytest.mark.skipif(
    available_backends()['triton'] is not None,
    reason=str(available_backends()['triton']),
)
def test_operator_registration_of_the_kernels():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    inputs = make_inputs(1, 1, 2, 3, 2, dtype=torch.float32)
    x, *others = share(Tensors(*(t.detach().to(device) for t in inputs)))[:7]
    torch.library.opcheck(
        torch.ops.vcmamba_mm.scan,
        (x.unflatten(1, (1, 2)), *others, *REST, 'triton', False),
    )


@pytest.mark.parametrize('num_paths', [1, 4])
@pytest.mark.parametrize('param_order', PARAM_ORDERS)
def test_flop_counter_counts_the_recurrence(param_order, num_paths):
    inputs = make_inputs(2, 3, 4, 6, 5)
    # paths, images, tokens, channels; a state's four products and two more
    macs = num_paths * 2 * 12 * 6 * (4 * 5 + 2)
    assert scan_macs(2, 12, 6, 5, num_paths) == macs
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        y = multi_directional_scan(
            *inputs, 3, 4, param_order=param_order, num_paths=num_paths
        )
        assert counter.get_total_flops() == 2 * macs
        y.sum().backward()
    # as for matrix products, twice as much backwards
    assert counter.get_total_flops() == 3 * 2 * macs


def test_meta_tensors_have_a_shape_and_a_cost():
    inputs = [t.to('meta') for t in make_inputs(2, 3, 4, 6, 5)]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        y = multi_directional_scan(*inputs, 3, 4)
    assert y.shape == (2, 12, 6) and y.device.type == 'meta'
    assert counter.get_total_flops() == 2 * scan_macs(2, 12, 6, 5)


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


def test_wrong_option():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="param_order.*'rows'"):
        multi_directional_scan(*inputs, 5, 8, param_order='rows')
    for num_paths in (0, 5):
        with pytest.raises(ValueError, match=f'1 to 4, got {num_paths}'):
            multi_directional_scan(*inputs, 5, 8, num_paths=num_paths)
    with pytest.raises(ValueError, match="'cuda'.*'auto'"):
        multi_directional_scan(*inputs, 5, 8, backend='cuda')
    for backend, reason in available_backends().items():
        if reason is not None:
            with pytest.raises(BackendError, match=backend):
                multi_directional_scan(*inputs, 5, 8, backend=backend)
