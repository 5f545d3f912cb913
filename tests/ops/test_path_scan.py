"""The operator as all families use it, against the specification."""

import itertools

import pytest
import torch
from conftest import needs_export
from scan_cases import TOLERANCES

from vcmamba_mm.ops import (
    available_backends,
    multi_directional_scan,
    path_scan,
    selective_scan,
)
from vcmamba_mm.ops.backends import BackendError
from vcmamba_mm.ops.export_scan import export_scan
from vcmamba_mm.ops.mamba_ssm_scan import mamba_ssm_scan
from vcmamba_mm.ops.scan_inputs import Options, Tensors
from vcmamba_mm.ops.scan_paths import PATHS, scan_paths

ORDERS = ('raster', 'path')
WHY_NOT = available_backends()


def backend(name, *marks):
    reason = WHY_NOT[name]
    skip = pytest.mark.skipif(reason is not None, reason=str(reason))
    return pytest.param(name, marks=[skip, *marks])


# Triton's interpreter is too slow for most of what follows.
BACKENDS = ['torch', backend('numba'), backend('triton', pytest.mark.gpu)]
VMAMBA = ('row', 'column', 'row_reverse', 'column_reverse')
# name: paths, snake, own parameters of each
SETS = dict(
    vcmamba=(PATHS, True, False),
    vmamba=(VMAMBA, False, True),
    mambavision=(('row',), False, False),
    backwards=(('column_reverse', 'row'), True, True),
)
LEFT_OUT = [(), ('D',), ('direction_B',), ('delta_bias',), Tensors._fields[5:]]


def make(size, own, channels=5, state=3, batch=2, without=(), paths=PATHS):
    """Tensors in float64 that require gradients."""
    length, p = size[0] * size[1], len(paths) if own else 1
    tensors = Tensors(
        torch.randn(batch, length, channels),
        torch.rand(batch, length, p, channels) * 2,
        -torch.rand(p, channels, state) * 4,
        torch.randn(batch, length, p, state),
        torch.randn(batch, length, p, state),
        torch.randn(p, channels),
        torch.randn(5, state),
        torch.rand(p, channels),  # so that steps are positive
    )
    tensors = tensors._replace(**dict.fromkeys(without))
    return Tensors(
        *(None if t is None else t.double().requires_grad_() for t in tensors)
    )


def scan(tensors, options, backend):
    on_gpu = backend == 'triton' and torch.cuda.is_available()
    if on_gpu:
        tensors = Tensors(*(None if t is None else t.cuda() for t in tensors))
    y = path_scan(
        *tensors[:6],
        *options[:2],
        paths=options.paths,
        snake=options.snake,
        param_order=options.param_order,
        direction_B=tensors.direction_B,
        delta_bias=tensors.delta_bias,
        delta_softplus=options.delta_softplus,
        backend=backend,
    )
    return y.cpu() if on_gpu else y


def with_grads(tensors, grad_y, call):
    given = [t for t in tensors if t is not None]
    y = call(tensors)
    return [y, *torch.autograd.grad(y, given, grad_y.to(y))]


def cast(tensors, dtype):
    """Without their history, requiring gradients."""
    return Tensors(
        *(
            None if t is None else t.detach().to(dtype).requires_grad_()
            for t in tensors
        )
    )


def compare(tensors, options, call, dtype=torch.float32):
    """y and all gradients of ``call`` with the reference's."""
    exact = cast(cast(tensors, dtype), torch.float64)
    grad_y = torch.randn_like(exact.x).to(dtype)
    expected = with_grads(
        exact, grad_y, lambda its: scan(its, options, 'reference')
    )
    results = with_grads(cast(tensors, dtype), grad_y, call)
    names = ['y', *(n for n, t in tensors._asdict().items() if t is not None)]
    rtol, atol = TOLERANCES[dtype]
    for name, result, its in zip(names, results, expected, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(
            result.double(),
            its,
            rtol=rtol,
            atol=atol * float(its.abs().max()),
            msg=lambda text, name=name: f'{name}: {text}',
        )


def by_hand(tensors, options):
    """The recurrence on numbers, written from the docstring."""
    x, delta, A, B, C, D, theta, bias = (
        None if t is None else t.detach().numpy() for t in tensors
    )
    tables = scan_paths(*options[:2], 'cpu', options.paths, options.snake)
    y = 0 * x
    for b, e, p in itertools.product(
        range(len(x)), range(x.shape[2]), range(len(options.paths))
    ):
        q, h = min(p, delta.shape[2] - 1), 0 * A[0, 0]
        for i in range(x.shape[1]):
            o, d = int(tables.order[p, i]), int(tables.direction[p, i])
            at = i if options.param_order == 'raster' else o
            step = delta[b, at, q, e] + (0 if bias is None else bias[q, e])
            if options.delta_softplus:
                step = float(torch.tensor(step).exp().add(1).log())
            added = B[b, at, q] + (0 if theta is None else theta[d])
            decay = 2.718281828459045 ** (step * A[q, e])
            h = decay * h + step * added * x[b, o, e]
            y[b, o, e] += (C[b, at, q] * h).sum()
            y[b, o, e] += 0 if D is None else D[q, e] * x[b, o, e]
    return torch.from_numpy(y)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('name', SETS)
def test_reference_is_the_recurrence(name, order):
    paths, snake, own = SETS[name]
    for without, softplus in zip(LEFT_OUT, (True, False, True, True, False)):
        options = Options(2, 3, paths, snake, order, softplus)
        tensors = make((2, 3), own, 2, 2, without=without, paths=paths)
        y = scan(tensors, options, 'reference').detach()
        torch.testing.assert_close(
            y, by_hand(tensors, options), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (3, 5), (7, 7)])
def test_every_set_of_paths(backend, size, name, order):
    paths, snake, own = SETS[name]
    options = Options(*size, paths, snake, order, True)
    compare(
        make(size, own, paths=paths),
        options,
        lambda t: scan(t, options, backend),
    )


@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('backend', [backend('triton')])
def test_triton_in_one_piece_and_in_segments(backend, name, monkeypatch):
    """Of three, two and one step; in the interpreter too."""
    from vcmamba_mm.ops import triton_scan

    monkeypatch.setattr(triton_scan, '_multiprocessors', lambda device: 100)
    paths, snake, own = SETS[name]
    for order, cut_from in (('raster', 99), ('path', 4), ('raster', 4)):
        monkeypatch.setattr(triton_scan, 'CUT_FROM', cut_from)
        monkeypatch.setattr(triton_scan, 'LEAST_STEPS', 3)
        options = Options(2, 4, paths, snake, order, True)
        compare(
            make((2, 4), own, 3, 3, 1, paths=paths),
            options,
            lambda t, options=options: scan(t, options, backend),
        )


@pytest.mark.parametrize('backend', [backend('triton')])
def test_triton_refuses_what_offsets_cannot_reach(backend):
    """Of 32 bits; a row of a huge tensor, or a huge output."""
    from vcmamba_mm.ops import triton_scan

    for t in (
        torch.empty(1, 2**16, 2**15 + 1, device='meta'),
        torch.empty(1, 2**16, 2**15 + 9, device='meta')[:, :, :8],
    ):
        with pytest.raises(ValueError, match='2\\^31.*torch'):
            triton_scan._check_offsets(t)
    triton_scan._check_offsets(torch.empty(9, 2**16, 2**15, device='meta'))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('softplus', [False, True])
@pytest.mark.parametrize('without', LEFT_OUT, ids=str)
@pytest.mark.parametrize('own', [False, True])
def test_what_may_be_left_out(backend, own, without, softplus):
    for order in ORDERS:
        options = Options(3, 4, PATHS, False, order, softplus)
        compare(
            make((3, 4), own, without=without),
            options,
            lambda t, options=options: scan(t, options, backend),
        )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('state', [1, 4, 8, 16, 32])
@pytest.mark.parametrize('own', [False, True])
def test_every_number_of_states(backend, own, state):
    options = Options(3, 4, VMAMBA, False, 'path')
    tensors = make((3, 4), own, 19, state, paths=VMAMBA)
    compare(tensors, options, lambda t: scan(t, options, backend))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_every_dtype(backend, dtype):
    options = Options(3, 4, VMAMBA, False, 'path')
    tensors = make((3, 4), True, paths=VMAMBA, without=('delta_bias',))
    compare(tensors, options, lambda t: scan(t, options, backend), dtype)


@pytest.mark.parametrize('backend', BACKENDS)
def test_half_of_a_tensor_and_expanded_ones(backend):
    options = Options(3, 4, ('row',), False, 'raster', True)
    tensors = make((3, 4), False)

    def call(t):
        x = torch.cat([t.x, t.x], -1)[..., : t.x.shape[2]]
        return scan(t._replace(x=x, A=t.A.expand(1, -1, -1)), options, backend)

    compare(tensors, options, call)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('name', SETS)
def test_one_call_of_mamba_for_each_path(name, order, monkeypatch):
    """Its kernel is CUDA code: a stand-in with the same interface."""
    import sys
    from types import ModuleType

    interface = ModuleType('interface')
    interface.selective_scan_fn = selective_scan_ref
    for part in ('mamba_ssm', 'mamba_ssm.ops'):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setitem(
        sys.modules, 'mamba_ssm.ops.selective_scan_interface', interface
    )
    paths, snake, own = SETS[name]
    options = Options(3, 4, paths, snake, order, True)
    compare(
        make((3, 4), own, paths=paths),
        options,
        lambda t: mamba_ssm_scan(t, options),
    )


@needs_export
@pytest.mark.parametrize('without', LEFT_OUT, ids=str)
@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('name', SETS)
def test_exportable_form(name, order, without):
    paths, snake, own = SETS[name]
    options = Options(3, 4, paths, snake, order, True)
    tensors = make((3, 4), own, without=without, paths=paths)
    torch.testing.assert_close(
        export_scan(tensors, options), scan(tensors, options, 'reference')
    )


def selective_scan_ref(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False
):
    """Mamba's formula (arXiv 2312.00752, eq. 2 and 4), channels first."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = (1 + delta.exp()).log()
    h, y = 0, []
    for t in range(u.shape[2]):
        dt = delta[:, :, t, None]
        write = dt * B[:, None, :, t] * u[:, :, t, None]
        h = torch.exp(dt * A) * h + write
        y.append((h * C[:, None, :, t]).sum(-1))
    y = torch.stack(y, 2)
    return y if D is None else y + D[:, None] * u


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_softplus_and_its_slope(dtype, backend):
    """From a state of 0, with x, B and C of 1, a token's y is its step."""
    device = 'cuda' if backend == 'triton' else 'cpu'
    before = torch.linspace(-87, 100, 3001, dtype=torch.float64).to(dtype)
    before = before.to(device)
    ones = torch.ones(3001, 1, 1, dtype=dtype, device=device)
    delta = before[:, None, None].requires_grad_()
    y = selective_scan(
        *(ones, delta, -ones[0], ones, ones),
        delta_softplus=True,
        backend=backend,
    )
    (slope,) = torch.autograd.grad(y.sum(), delta)
    exact = before.detach().double()
    step = exact.exp().log1p().where(exact <= 20, exact)
    slope_of_step = exact.sigmoid().where(exact <= 20, torch.ones_like(exact))
    rtol = 1e-6 if dtype == torch.float32 else 1e-14
    if backend == 'triton':  # a GPU's exp(-87) is right to 5e-6
        rtol *= 6
    for result, expected in ((y, step), (slope, slope_of_step)):
        torch.testing.assert_close(
            result.detach().flatten().double(), expected, rtol=rtol, atol=0
        )


@pytest.mark.parametrize('backend', BACKENDS)
def test_softplus_far_away(backend):
    device = 'cuda' if backend == 'triton' else 'cpu'
    values = torch.tensor([-float('inf'), -1e30, -104, 1e30, float('inf')])
    values = values.to(device)
    ones = torch.ones(5, 1, 1, device=device)
    y = selective_scan(
        *(ones, values[:, None, None], -ones[0], ones, ones),
        delta_softplus=True,
        backend=backend,
    )
    expected = torch.tensor([0, 0, 0, 1e30, float('inf')])
    torch.testing.assert_close(y.cpu().flatten(), expected, rtol=0, atol=1e-37)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('channels', [1, 31, 32, 33, 64, 300])
def test_every_number_of_channels(backend, channels):
    """Of vectors and tiles one, some, and parts."""
    for own in (False, True):
        options = Options(1, 3, PATHS, False, 'raster', True)
        compare(
            make((1, 3), own, channels, 16, 1),
            options,
            lambda t, options=options: scan(t, options, backend),
        )


@pytest.mark.parametrize(
    'name, value',
    [
        ('x', torch.zeros(2, 12, 5, dtype=torch.complex64)),
        ('x', torch.zeros(2, 12, 5, dtype=torch.int64)),
        ('x', None),
        ('x', torch.zeros(2, 12, 0)),
        ('delta', [[1.0]]),
        ('A', torch.zeros(4, 5, 3, dtype=torch.int32)),
        ('delta', torch.zeros(2, 12, 3, 5)),
        ('delta', torch.zeros(2, 12, 5)),
        ('A', torch.zeros(1, 5, 3)),
        ('B', torch.zeros(2, 12, 1, 3)),
        ('C', torch.zeros(2, 12, 4, 2)),
        ('D', torch.zeros(5)),
        ('direction_B', torch.zeros(4, 3)),
        ('delta_bias', torch.zeros(4, 4)),
        ('B', torch.zeros(2, 12, 4, 3, device='meta')),
    ],
)
def test_wrong_tensors_are_named(name, value):
    options = Options(3, 4, VMAMBA)
    tensors = make((3, 4), True)._replace(**{name: value})
    for backend in ('torch', 'reference'):
        with pytest.raises(ValueError, match=f'^{name} '):
            scan(tensors, options, backend)


@pytest.mark.parametrize('paths', [(), ('rows',), ('row', 'diagonal')])
def test_unknown_paths(paths):
    with pytest.raises(ValueError, match="paths must be some of .*'row'"):
        scan(make((3, 4), False), Options(3, 4, paths), 'torch')


def shared():
    """The seven tensors of VCMamba's face."""
    x, delta, A, B, C, D, theta, _ = make((2, 3), False)
    return [
        t.detach()
        for t in (x, delta[:, :, 0], A[0], B[:, :, 0], C[:, :, 0], D[0], theta)
    ]


def test_forward_mode():
    """As the difference quotient says; registered operators give 0."""
    tensors = shared()
    tangents = [torch.randn_like(t) for t in tensors]

    def call(*tensors):
        return multi_directional_scan(*tensors, 2, 3)

    y, slope = torch.func.jvp(call, tuple(tensors), tuple(tangents))
    torch.testing.assert_close(y, call(*tensors))
    step = 1e-6
    before, after = (
        call(*(t + s * step * v for t, v in zip(tensors, tangents)))
        for s in (-1, 1)
    )
    torch.testing.assert_close(
        slope, (after - before) / (2 * step), rtol=1e-6, atol=1e-6
    )
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, tensors, tangents)
        dual = torch.autograd.forward_ad.unpack_dual(call(*duals))
        torch.testing.assert_close(dual.tangent, slope)


def test_functional_gradients():
    tensors = shared()
    grads = torch.func.grad(
        lambda x: multi_directional_scan(x, *tensors[1:], 2, 3).square().sum()
    )(tensors[0])
    x = tensors[0].requires_grad_()
    multi_directional_scan(x, *tensors[1:], 2, 3).square().sum().backward()
    torch.testing.assert_close(grads, x.grad)


def test_gradients_of_gradients():
    x, *others = shared()
    x.requires_grad_()
    y = multi_directional_scan(x, *others, 2, 3).pow(3).sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(BackendError, match='reference'):
        grad.sum().backward()
    assert torch.autograd.gradgradcheck(
        lambda x: multi_directional_scan(
            x, *others, 2, 3, backend='reference'
        ),
        x,
    )
