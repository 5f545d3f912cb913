"""What tools that take models apart find in every backbone."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
from conftest import randomize_norms
from mmengine.analysis import FlopAnalyzer
from smallest import (
    ALL,
    BACKBONES,
    build_smallest,
    images,
    loss,
    of_stages,
)
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.feature_extraction import create_feature_extractor

from vcmamba_mm.analysis.complexity import count_macs
from vcmamba_mm.deploy import fuse


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


@pytest.fixture
def build(name):
    return partial(build_smallest, name)


def leaves(model, *kinds):
    """Layers of some kinds, with their parents and names."""
    return [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if isinstance(module, kinds)
    ]


def returned(modules, model, x):
    """What some modules return: after stages may come norms of the outputs."""
    outs = []
    hooks = [
        module.register_forward_hook(lambda module, args, y: outs.append(y))
        for module in modules
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return outs


def train(model, steps=2):
    """Some steps on the same pictures."""
    x = images(4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Steps of one size, however small the gradient is.
    optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-30)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()


def test_features_of_timm(build):
    features = pytest.importorskip('timm.models._features')
    model = build(out_indices=ALL).eval()
    names = [f'stages.{i}' for i in ALL]
    hooks = features.FeatureHooks(names, model.named_modules())
    maps = returned(model.stages, model, images())
    found = hooks.get_output(torch.device('cpu'))
    assert list(found) == names
    for a, b in zip(found.values(), maps, strict=True):
        assert a is b


class LoRA(nn.Module):
    """A low-rank adapter around a linear layer (arXiv 2106.09685)."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merge(self):
        with torch.no_grad():
            self.base.weight += self.up.weight @ self.down.weight
        return self.base


def test_low_rank_adapters_learn_and_merge(build):
    model = build().requires_grad_(False)
    for parent, name, linear in leaves(model, nn.Linear):
        setattr(parent, name, LoRA(linear))
    adapters = leaves(model, LoRA)
    assert adapters
    train(model)
    for _, name, lora in adapters:
        for weight in lora.parameters():
            assert weight.requires_grad == (weight.grad is not None), name
            assert not weight.requires_grad or weight.grad.any(), name
    x = images()
    adapted = model.eval()(x)[0]
    for parent, name, lora in adapters:
        setattr(parent, name, lora.merge())
    torch.testing.assert_close(model(x)[0], adapted, rtol=1e-4, atol=1e-5)


PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def test_pruned_layers_train(build):
    model = build(out_indices=ALL)
    layers = [layer for *_, layer in leaves(model, *PRUNABLE)]
    for layer in layers:
        prune.random_unstructured(layer, 'weight', amount=0.5)
    before = copy.deepcopy([layer.weight_orig for layer in layers])
    train(model)
    for layer, weight in zip(layers, before, strict=True):
        kept = layer.weight_mask.bool()
        change = layer.weight_orig != weight
        assert change[kept].any() and not change[~kept].any()


@pytest.mark.parametrize(
    'of', [parametrizations, nn.utils], ids=['new', 'old']
)
def test_weight_normed_layers_train(build, of):
    model, plain = (build(out_indices=ALL).eval() for _ in range(2))
    layers = [layer for *_, layer in leaves(model, *PRUNABLE)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the older one is older
        for layer in layers:
            of.weight_norm(layer)
    x = images()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    train(model.train())
    weights = {
        name: p for name, p in model.named_parameters() if 'weight' in name
    }
    assert len(weights) >= 2 * len(layers)
    assert all(p.grad.any() for p in weights.values())


def test_dynamic_quantization(build, name):
    model, x = build().eval(), images()
    count = len(leaves(model, nn.Linear))
    expected = model(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that torchao comes after it
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    layers = leaves(quantized, torch.ao.nn.quantized.dynamic.Linear)
    assert len(layers) == count > 0
    error = (quantized(x)[0] - expected).norm() / expected.norm()
    # They add up like a random walk.
    assert 0 < error < BACKBONES[name].rounding * count**0.5


@of_stages  # of others in their own file, once: it takes seconds
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('with_gradients', [False, True])
def test_a_trace_of_jit_is_right_at_every_size(build, with_gradients, with_cp):
    """And keeps none: 96 x 64 has as many tokens as 64 x 96."""
    # float64: in float32 a CPU has other kernels for what is not traced
    model = build(out_indices=ALL, with_cp=with_cp).double().eval()
    with torch.set_grad_enabled(with_gradients):
        with warnings.catch_warnings():
            warnings.simplefilter('error', torch.jit.TracerWarning)
            traced = torch.jit.trace(model, (images().double(),))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        traced = torch.jit.load(file)
        for height, width in ((64, 96), (96, 64), (64, 64), (97, 130)):
            x = images(3, height, width).double()
            torch.testing.assert_close(traced(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('training', [False, True])
def test_symbolic_tracing(build, training):
    model = build(drop_path_rate=0.2).train(training)
    traced = torch.fx.symbolic_trace(model)
    for height, width in ((64, 96), (97, 130)):
        x = images(3, height, width)
        torch.manual_seed(1)
        expected = model(x)[0]
        torch.manual_seed(1)
        torch.testing.assert_close(traced(x)[0], expected)


def test_symbolic_tracing_of_each_stage(build):
    model = build(out_indices=ALL).eval()
    calls = []
    for stage in model.stages:
        stage.register_forward_hook(lambda *call: calls.append(call))
    model(images())
    for stage, args, expected in calls:
        traced = torch.fx.symbolic_trace(stage)
        torch.testing.assert_close(traced(*args), expected)


@torch.no_grad()
def test_traces_of_a_fused_model(build):
    model = randomize_norms(build(out_indices=ALL)).eval()
    fused = fuse(copy.deepcopy(model))
    for traced in (
        torch.jit.trace(fused, (images(),)),
        torch.fx.symbolic_trace(fused),
    ):
        for height, width in ((64, 96), (97, 130)):
            x = images(3, height, width)
            torch.testing.assert_close(
                traced(x), model(x), rtol=1e-4, atol=1e-5
            )


def test_feature_extractor_of_torchvision(build):
    model = build(out_indices=ALL, drop_path_rate=0.2)
    names = {f'stages.{i}': str(i) for i in ALL}
    extractor = create_feature_extractor(model, names).eval()
    x = images(1, 96, 64)
    maps = returned(model.stages, model.eval(), x)
    for a, b in zip(extractor(x).values(), maps, strict=True):
        torch.testing.assert_close(a, b)
    block = 'stages.1.blocks.0'
    extractor = create_feature_extractor(model, [block]).eval()
    (expected,) = returned([model.get_submodule(block)], model, x)
    torch.testing.assert_close(extractor(x)[block], expected)


def test_counted_by_mmengine(name, build):
    """What mmpretrain's and mmseg's get_flops.py ask."""
    model = build().eval()
    counter = FlopAnalyzer(model, (images(1),)).unsupported_ops_warnings(False)
    by_operator = counter.by_operator()
    products = ('conv', 'linear', 'matmul', 'scan')
    attention = 'scaled_dot_product_attention'
    ours = sum(by_operator[name] for name in (*products, attention))
    assert by_operator['scan'] > 0
    assert (attention in by_operator) == (name == 'MambaVision')
    assert ours == count_macs(Tensors(model), (3, 64, 96))
    # Where attention is written out as two products.
    assert ours == count_macs(Tensors(model.to('meta')), (3, 64, 96))


class Tensors(nn.Module):
    """A backbone that is called as a model of MMEngine is."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x, mode):
        return self.backbone(x)
