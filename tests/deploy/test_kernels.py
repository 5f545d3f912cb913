"""The kernels that a fused model chooses from."""

import copy
import io
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomize_norms

from vcmamba_mm import VCMamba
from vcmamba_mm.deploy import fuse, kernels
from vcmamba_mm.deploy.kernels import FusedConv2d

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='needs oneDNN'
)


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """What has been chosen: nothing yet."""
    monkeypatch.setattr(kernels, 'fastest_kernels', {})
    return kernels.fastest_kernels


def conv(kernel_size=1, groups=1, gelu=False, **kwargs):
    module = FusedConv2d(
        8, 8, kernel_size, padding=kernel_size // 2, groups=groups, **kwargs
    )
    module.gelu = gelu
    return module.to(memory_format=torch.channels_last)


def maps(batch=2, side=5):
    x = torch.randn(batch, 8, side, side)
    return x.contiguous(memory_format=torch.channels_last)


def names(module):
    return [(f.__name__, post_op) for f, post_op in module.kernels()]


def test_kernels():
    assert names(conv()) == [
        ('_linear', 'none'),
        ('_matmul', 'none'),
        ('_convolution', 'none'),
    ]
    assert names(conv(gelu=True)) == [
        ('_linear', 'gelu'),
        ('_linear', 'none'),
        ('_matmul', 'none'),
        ('_convolution', 'gelu'),
        ('_convolution', 'none'),
    ]
    assert names(conv(3, 8, gelu=True)) == [
        ('_convolution', 'gelu'),
        ('_convolution', 'none'),
    ]


@pytest.mark.parametrize('gelu', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('kernel_size, groups', [(1, 1), (3, 8), (7, 8)])
@torch.no_grad()
def test_every_kernel_is_right(kernel_size, groups, bias, gelu):
    """Against the convolution and the formula of GELU, in float64."""
    module = conv(kernel_size, groups, gelu, bias=bias)
    x = maps()
    kept = x.clone()
    expected = F.conv2d(
        x.double(),
        module.weight.double(),
        module.bias.double() if bias else None,
        padding=module.padding,
        groups=groups,
    )
    if gelu:
        expected = expected * torch.special.ndtr(expected)
    for kernel in module.kernels():
        found = module._run(kernel, x)
        torch.testing.assert_close(
            found.double(), expected, rtol=1e-5, atol=1e-6
        )
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, kept)


@pytest.fixture
def clock(monkeypatch):
    """A clock that kernels advance: seconds and calls by name."""
    clock = SimpleNamespace(now=0.0, seconds={}, calls=[])

    def timed(function):
        def kernel(conv, x, post_op):
            clock.calls.append(function.__name__)
            clock.now += clock.seconds[function.__name__]
            return function(conv, x, post_op)

        kernel.__name__ = function.__name__
        return kernel

    for name in ('_linear', '_matmul', '_convolution'):
        monkeypatch.setattr(kernels, name, timed(getattr(kernels, name)))
    monkeypatch.setattr(time, 'perf_counter', lambda: clock.now)
    return clock


@pytest.mark.parametrize('fastest', ['_linear', '_matmul', '_convolution'])
@torch.no_grad()
def test_the_fastest_is_taken(fastest, clock):
    clock.seconds = {'_linear': 2, '_matmul': 2, '_convolution': 2, fastest: 1}
    module = conv()
    module(maps())
    del clock.calls[:]
    module(maps())
    assert clock.calls == [fastest]


@torch.no_grad()
def test_timed_once_for_each_case(clock, chosen):
    """Shape of the weight, GELU, input up to a factor of two, threads."""
    clock.seconds = {'_linear': 1, '_matmul': 1, '_convolution': 1}

    def timings(module, x):
        before = len(clock.calls), len(chosen)
        module(x)
        assert len(clock.calls) > before[0]
        return len(chosen) - before[1]

    module = conv()
    assert timings(module, maps(side=5)) == 1
    assert timings(module, maps(side=5)) == 0
    assert timings(conv(), maps(side=5)) == 0
    assert timings(module, maps(side=6)) == 1
    assert timings(module, maps(side=7)) == 0  # 576 and 784 numbers
    assert timings(module, maps(side=50)) == 1
    assert timings(conv(gelu=True), maps(side=5)) == 1
    assert timings(conv(3, 8), maps(side=5)) == 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert timings(module, maps(side=5)) == 1
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_deterministic_algorithms_are_not_timed(clock, chosen):
    clock.seconds = {'_linear': 3, '_matmul': 1, '_convolution': 1}
    torch.use_deterministic_algorithms(True)
    try:
        conv()(maps())
    finally:
        torch.use_deterministic_algorithms(False)
    assert clock.calls == ['_linear'] and not chosen


def test_a_model_that_has_chosen_is_saved_as_any_other(chosen):
    torch.manual_seed(0)
    model = fuse(randomize_norms(VCMamba(arch=TINY, img_size=64)).eval())
    assert any(m.gelu for m in model.modules() if isinstance(m, FusedConv2d))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)[0]
    assert chosen
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        with torch.inference_mode():
            assert torch.equal(other(x)[0], expected)
