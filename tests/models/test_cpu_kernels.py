"""float32 on a CPU: other kernels for the same layers."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vcmamba_mm import VCMamba
from vcmamba_mm.models.layers import GELU, PointwiseConv2d

aten = torch.ops.aten


class Recorder(TorchDispatchMode):
    """What is called while it is entered: operators and their tensors."""

    def __enter__(self):
        self.calls = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args))
        return func(*args, **(kwargs or {}))

    def kernel_sizes(self):
        """Of the convolutions, forward and backward."""
        weights = [
            args[1 if func is aten.convolution.default else 2]
            for func, args in self.calls
            if func
            in (aten.convolution.default, aten.convolution_backward.default)
        ]
        return {tuple(weight.shape[2:]) for weight in weights}


def tiny(**kwargs):
    torch.manual_seed(0)
    return VCMamba(arch=TINY, img_size=64, out_indices=(0, 1, 2, 3), **kwargs)


def images():
    return torch.randn(2, 3, 64, 96)


def run(model, x):
    """A forward and a backward pass, recorded."""
    with Recorder() as recorder:
        maps = model(x)
        sum(y.square().mean() for y in maps).backward()
    return recorder


def test_pointwise_convolutions_are_matrix_products():
    recorder = run(tiny(), images())
    # The stem's and the depthwise ones are left.
    assert recorder.kernel_sizes() == {(3, 3), (7, 7)}


@pytest.mark.parametrize('case', ['float64', 'autocast', 'meta'])
def test_elsewhere_they_are_convolutions(case):
    model, x = tiny(), images()
    if case == 'float64':
        model, x = model.double(), x.double()
    elif case == 'meta':
        model, x = model.to('meta'), x.to('meta')
    with torch.autocast('cpu', torch.bfloat16, enabled=case == 'autocast'):
        recorder = run(model, x)
    assert recorder.kernel_sizes() == {(1, 1), (3, 3), (7, 7)}


def test_what_is_exported_has_convolutions():
    model = tiny().eval()
    exported = torch.export.export(model, (images(),))
    nodes = exported.graph.nodes
    targets = [node.target for node in nodes]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert targets.count(aten.conv2d.default) == len(convolutions)
    assert targets.count(aten.linear.default) == len(
        [m for m in model.modules() if isinstance(m, nn.Linear)]
    )
    assert not any(torch.channels_last in n.kwargs.values() for n in nodes)


def test_maps_are_channels_last_inside_only():
    """The convolutions of contiguous weights keep it, too."""
    model, formats = tiny(), []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GELU)):
            module.register_forward_hook(
                lambda module, args, y: formats.append(
                    y.is_contiguous(memory_format=torch.channels_last)
                )
            )
    maps = model(images())
    assert formats and all(formats)
    assert all(y.is_contiguous() for y in maps)


@pytest.mark.parametrize('memory_format', ['contiguous', 'channels_last'])
@pytest.mark.parametrize(
    'shape',
    [(2, 5, 6, 7), (1, 5, 1, 1), (1, 5, 1, 6), (0, 5, 4, 4), (5, 6, 7)],
    ids=str,
)
@pytest.mark.parametrize('bias', [True, False])
def test_pointwise_equals_the_convolution(bias, shape, memory_format):
    """In float64, with gradients, of maps and unbatched ones."""
    conv = PointwiseConv2d(5, 8, bias)
    x = torch.randn(shape)
    if len(shape) == 4 and memory_format == 'channels_last':
        x = x.contiguous(memory_format=torch.channels_last)
        conv = conv.to(memory_format=torch.channels_last)
    weight = torch.randn_like(conv(x))
    inputs = [x, *conv.parameters()]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    x.requires_grad_()
    expected = F.conv2d(*exact)
    found = conv(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(2, 6, 5, 7), (2, 6, 1, 1), (3, 4)])
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_gelu(approximate, shape):
    """By its formulas; channels-last maps by kernels for contiguous ones."""
    memory_format = torch.contiguous_format
    if len(shape) == 4:
        memory_format = torch.channels_last
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    exact = x.double()
    if approximate == 'none':
        expected = exact * torch.special.ndtr(exact)
    else:
        inner = exact + 0.044715 * exact**3
        expected = exact * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * inner)
    with Recorder() as recorder:
        found = GELU(approximate)(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=memory_format)
    ((tensor, *_),) = [
        args for func, args in recorder.calls if func is aten.gelu.default
    ]
    assert tensor.is_contiguous()
