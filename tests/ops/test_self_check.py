"""The kernels are checked before 'auto' takes them.

Without a GPU there is Triton's interpreter, which takes 0.02 s for a token:
the cases are the smallest, and a GPU is what the tests say it is.
"""

import itertools
import json
import multiprocessing

import pytest
import torch
from conftest import needs_torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vcmamba_mm.ops import (
    available_backends,
    backends,
    path_scan,
    scan_operator,
    self_check,
)
from vcmamba_mm.ops.backends import BackendError, auto_backend
from vcmamba_mm.ops.reference import reference_scan
from vcmamba_mm.ops.scan_inputs import Tensors

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CUDA = torch.device('cuda', 0)
TINY = [
    case._replace(
        options=case.options._replace(height=1, width=2), batch=1, channels=3
    )
    for case in self_check.CASES
]
# shared and own parameters, softplus and bias off and on
PAIR = TINY[0], TINY[-1]

needs_triton = pytest.mark.skipif(
    available_backends()['triton'] is not None,
    reason=str(available_backends()['triton']),
)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that nothing is known of; the checks made on it, in a list."""
    checks, check = [], self_check.check

    def check_pair(run, device):
        checks.append(device)
        return check(run, DEVICE, PAIR)

    monkeypatch.setattr(self_check, 'check', check_pair)
    monkeypatch.setattr(self_check, '_verdicts', {})
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'G 1')
    monkeypatch.setattr(
        torch.cuda, 'is_current_stream_capturing', lambda: False
    )
    monkeypatch.setattr(backends, '_works', lambda name: name == 'triton')
    monkeypatch.setattr(backends, '_interprets_triton', lambda: False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('VCMAMBA_MM_BACKEND', raising=False)
    return checks


@pytest.fixture
def stub(gpu, monkeypatch):
    """As ``gpu``, where every check passes at once."""

    def check(run, device):
        gpu.append(device)
        return self_check.Verdict(True, 'as it is said')

    monkeypatch.setattr(self_check, 'check', check)
    return gpu


def forget(monkeypatch):
    """Go on as another process."""
    monkeypatch.setattr(self_check, '_verdicts', {})


def test_cases_have_any_three_options_together():
    features = [
        (c.options.param_order, c.own, c.states, c.options.delta_softplus)
        for c in self_check.CASES
    ]
    values = ('raster', 'path'), (False, True), (1, 16), (False, True)
    for three in itertools.combinations(range(4), 3):
        assert {tuple(f[i] for i in three) for f in features} == set(
            itertools.product(*(values[i] for i in three))
        )
    sizes = {size for c in self_check.CASES for size in c.options[:2]}
    assert all(size % 2 for size in sizes)


@needs_triton
def test_kernels_agree():
    verdict = self_check.check(self_check._run_triton, DEVICE, TINY)
    assert verdict.agrees, verdict.reason
    assert verdict.reason.startswith('largest error ')


@pytest.mark.parametrize('error', [1e-4, float('nan')])
@pytest.mark.parametrize('name', ['y', *Tensors._fields])
def test_what_is_wrong_is_named(name, error):
    right = self_check.differentiate(reference_scan)

    def wrong(*args):
        y, grads = right(*args)
        if name == 'y':
            y[0, 0, 0] += error * y.abs().max()
        elif (grad := getattr(grads, name)) is not None:
            grad.view(-1)[0] += error * grad.abs().max()
        return y, grads

    assert self_check.check(right, 'cpu', PAIR).agrees
    agrees, reason = self_check.check(wrong, 'cpu', PAIR)
    assert not agrees
    what = name if name == 'y' else f'the gradient of {name}'
    assert f', of {what}, in Case(' in reason


@needs_triton
def test_auto_takes_kernels_that_agree(gpu, caplog):
    assert auto_backend(CUDA) == auto_backend(CUDA) == 'triton'
    assert gpu == [CUDA]
    assert 'compiled and checked on G 1, once' in caplog.text


@needs_triton
@pytest.mark.parametrize('name', ['scan_forward', 'scan_backward'])
def test_auto_goes_without_wrong_kernels(
    gpu, name, monkeypatch, tmp_path, caplog
):
    from vcmamba_mm.ops import triton_scan

    scan = getattr(triton_scan, name)

    def wrong(*args):
        result = scan(*args)
        if name == 'scan_forward':
            return result * 1.001
        return result._replace(C=result.C * 1.001)

    monkeypatch.setattr(triton_scan, name, wrong)
    assert auto_backend(CUDA) == auto_backend(CUDA) == 'torch'
    _, warning = caplog.messages  # after the one that it is checked
    what = dict(scan_forward='y', scan_backward='the gradient of C')[name]
    assert f'error 1.0e-03, of {what}, in' in warning
    assert 'report it' in warning and 'vcmamba_mm.doctor' in warning
    assert not [*tmp_path.rglob('*.json')]  # the next process looks again


def errors():
    triton = pytest.importorskip('triton')
    from triton.runtime.errors import OutOfResources, PTXASError

    return [
        triton.CompilationError('', None, 'no such builtin'),
        OutOfResources(300, 200, 'shared memory'),
        PTXASError('ptxas is too old'),
        RuntimeError('Failed to find C compiler'),
        torch.OutOfMemoryError('CUDA out of memory'),
        KeyError('num_warps'),
    ]


@needs_triton
@pytest.mark.parametrize('number', range(6))
def test_auto_goes_without_kernels_that_fail(gpu, number, monkeypatch, caplog):
    from vcmamba_mm.ops import triton_scan

    error = errors()[number]

    def fail(*args):
        raise error

    monkeypatch.setattr(triton_scan, 'scan_forward', fail)
    assert auto_backend(CUDA) == auto_backend(CUDA) == 'torch'
    _, warning = caplog.messages
    assert f'{type(error).__name__}: ' in warning and 'report' in warning
    # mamba-ssm's kernel comes first, where it can be had.
    monkeypatch.setattr(backends, '_works', lambda name: True)
    assert auto_backend(CUDA) == 'mamba_ssm'
    assert auto_backend(CUDA, mamba_ssm=False) == 'torch'


@needs_triton
def test_other_faults_are_raised(gpu, monkeypatch):
    from vcmamba_mm.ops import triton_scan

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(triton_scan, 'scan_forward', fail)
    with pytest.raises(ZeroDivisionError):
        auto_backend(CUDA)


def test_nothing_to_check_without_triton(stub, monkeypatch, caplog):
    monkeypatch.setattr(backends, '_works', lambda name: False)
    assert auto_backend(CUDA) == 'torch'
    # The interpreter is no reason to call a GPU's kernels right.
    monkeypatch.setattr(backends, '_works', lambda name: name == 'triton')
    monkeypatch.setattr(backends, '_interprets_triton', lambda: True)
    assert auto_backend(CUDA) == 'torch'
    assert not stub and not caplog.messages


@needs_triton
def test_remembered_on_disk(stub, monkeypatch, tmp_path):
    def checked():
        forget(monkeypatch)
        stub.clear()
        assert auto_backend(CUDA) == 'triton'
        return len(stub)

    assert [checked(), checked()] == [1, 0]
    (file,) = tmp_path.rglob('*.*')
    assert json.loads(file.read_text())['gpu'] == 'G 1'
    # Another GPU, PyTorch, Triton, kernel.
    import triton

    for owner, name, value in (
        (torch.cuda, 'get_device_name', lambda device: 'G 2'),
        (torch, '__version__', '9.0'),
        (triton, '__version__', '9.0'),
        (self_check, 'SOURCES', self_check.SOURCES[:1]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert [checked(), checked()] == [1, 0], name
    assert checked() == 0
    # What is damaged, or something else.
    for content in (b'', b'{"gpu": "G', b'[]', b'\xff', b'{"gpu": "G 1"}'):
        file.write_bytes(content)
        assert [checked(), checked()] == [1, 0], content
    # What agreed before, and does not now.
    monkeypatch.setattr(
        self_check, 'check', lambda *_: self_check.Verdict(False, 'it broke')
    )
    self_check.check_triton(CUDA, fresh=True)
    assert auto_backend(CUDA) == 'torch' and not file.exists()


@needs_triton
def test_no_folder_to_remember_in(stub, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / 'file', 'relative'):
        forget(monkeypatch)
        monkeypatch.setenv('XDG_CACHE_HOME', str(place))
        stub.clear()
        assert auto_backend(CUDA) == auto_backend(CUDA) == 'triton'
        assert len(stub) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@needs_triton
def test_processes_remember_at_the_same_time(stub, monkeypatch, tmp_path):
    """A file that is there is whole."""
    key = self_check._key('G 1')

    def write():
        for _ in range(100):
            self_check._remember(key, True)

    context = multiprocessing.get_context('fork')
    others = [context.Process(target=write) for _ in range(2)]
    for other in others:
        other.start()
    while not self_check._remembers(key):
        assert any(other.is_alive() for other in others)
    while any(other.is_alive() for other in others):
        assert self_check._remembers(key)
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert len([*tmp_path.rglob('*')]) == 2  # folder and file


@needs_triton
def test_no_check_while_a_graph_is_captured(stub, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
        assert auto_backend(CUDA) == 'torch' and not stub
    assert auto_backend(CUDA) == 'triton' and len(stub) == 1
    monkeypatch.setattr(
        torch.cuda, 'is_current_stream_capturing', lambda: True
    )
    assert auto_backend(CUDA) == 'triton'


@needs_triton
def test_what_surrounds_the_caller_changes_nothing(gpu):
    state = torch.get_rng_state()
    with (
        FakeTensorMode(),
        torch.inference_mode(),
        torch.autocast('cpu', torch.bfloat16),
        torch.utils.flop_counter.FlopCounterMode(display=False) as counter,
    ):
        assert auto_backend(CUDA) == 'triton'
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), state)


def make_inputs(device='cpu'):
    tensors, grad_y = self_check._make_inputs(TINY[0])
    x, *others = tensors.to(device)
    return (x.unflatten(1, (1, 2)), *others), grad_y


OPTIONS = ('row row_reverse column column_reverse', True, 'raster', False)


@needs_torch('2.8', 'fake tensors of a GPU need a real one')
def test_traces_on_a_gpu_need_no_verdict(stub):
    """What is saved for the backward pass has one size on all machines."""
    with FakeTensorMode():
        tensors, _ = make_inputs('cuda')
        y, saved = torch.ops.vcmamba_mm.scan(*tensors, *OPTIONS, 'auto', True)
        assert y.shape == (1, 2, 3) and saved.shape == (0,)
        _, saved = torch.ops.vcmamba_mm.scan(*tensors, *OPTIONS, 'torch', True)
        assert saved.numel() == 4 * 16 * 3  # one chunk of 4 paths
    assert not stub


def test_gradients_without_saved_states(monkeypatch):
    """As 'auto' on a GPU has them where the kernels fail."""
    results = []
    for has_states in (True, False):
        monkeypatch.setattr(
            scan_operator, '_keeps_states', lambda *_, its=has_states: its
        )
        tensors, grad_y = make_inputs()
        given = [t.requires_grad_() for t in tensors if t is not None]
        y, saved = torch.ops.vcmamba_mm.scan(*tensors, *OPTIONS, 'torch', True)
        assert bool(saved.numel()) == has_states
        results.append([y, *torch.autograd.grad(y, given, grad_y)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def scan(**kwargs):
    tensors, _ = self_check._make_inputs(TINY[0])
    x = tensors.x.requires_grad_()
    y = path_scan(
        *(x, *tensors[1:6], 1, 2), direction_B=tensors.direction_B, **kwargs
    )
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return grad.sum().backward()


def test_the_variable_says_what_auto_is(monkeypatch):
    """Gradients of gradients are known to the reference alone."""
    monkeypatch.setenv('VCMAMBA_MM_BACKEND', 'reference')
    scan()
    with pytest.raises(BackendError, match='gradients of gradients'):
        scan(backend='torch')
    for value in ('torch', 'auto', ''):
        monkeypatch.setenv('VCMAMBA_MM_BACKEND', value)
        with pytest.raises(BackendError, match='gradients of gradients'):
            scan()
        scan(backend='reference')


def test_the_variable_names_what_does_not_work(monkeypatch):
    monkeypatch.setenv('VCMAMBA_MM_BACKEND', 'tritium')
    with pytest.raises(
        ValueError, match="^VCMAMBA_MM_BACKEND: unknown.*'tritium'.*'torch'"
    ):
        scan()
    monkeypatch.setenv('VCMAMBA_MM_BACKEND', 'mamba_ssm')
    with pytest.raises(
        BackendError, match="^VCMAMBA_MM_BACKEND: scan backend 'mamba_ssm'"
    ):
        scan()
    scan(backend='reference')


def test_the_variable_holds_for_what_was_traced(monkeypatch):
    class Scan(torch.nn.Module):
        def forward(self, x, delta, A, B):
            return path_scan(x, delta, A, B, B, None, 1, 2)

    tensors, _ = self_check._make_inputs(TINY[0])
    inputs = tensors[:4]
    traced = torch.jit.trace(Scan(), inputs)
    program = torch.export.export(Scan(), inputs).module()
    for call in (traced, program):
        monkeypatch.setenv('VCMAMBA_MM_BACKEND', 'torch')
        torch.testing.assert_close(call(*inputs), Scan()(*inputs))
        monkeypatch.setenv('VCMAMBA_MM_BACKEND', 'reference')
        with pytest.raises(RuntimeError, match='VCMAMBA_MM_BACKEND.*traced'):
            call(*inputs)


@pytest.mark.gpu
def test_kernels_agree_on_this_gpu(tmp_path, monkeypatch):
    forget(monkeypatch)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    verdict = self_check.check_triton(CUDA)
    assert verdict.agrees, verdict.reason
    assert auto_backend(CUDA) == 'triton'
    forget(monkeypatch)
    assert self_check.check_triton(CUDA).reason == 'agreed before'


@pytest.mark.gpu
def test_auto_in_a_captured_graph():
    tensors, _ = self_check._make_inputs(self_check.CASES[0])
    tensors = tensors.to('cuda')

    def scan():
        height, width = self_check.CASES[0].options[:2]
        return path_scan(*tensors[:6], height, width)

    expected = scan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = scan()
    graph.replay()
    torch.testing.assert_close(y, expected)
