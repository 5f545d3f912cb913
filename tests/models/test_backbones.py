"""What every backbone has to bear: tools that take it apart.

A new family adds its name and its smallest model to ``BACKBONES``.
"""

import copy
import io
import warnings

import pytest
import torch
from conftest import TINY
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.feature_extraction import create_feature_extractor

from vcmamba_mm.analysis.complexity import count_macs

# Of four stages, with values at which every branch is seen.
BACKBONES = dict(
    VCMamba=dict(arch=TINY, img_size=64, layer_scale_init_value=1.0),
)
ALL = (0, 1, 2, 3)


@pytest.fixture(params=BACKBONES)
def build(request):
    """Build a backbone in training mode."""

    def build(**kwargs):
        torch.manual_seed(0)
        name = request.param
        return MODELS.build(dict(BACKBONES[name], type=name, **kwargs)).train()

    return build


def images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width)


def leaves(model, *kinds):
    """Layers of some kinds, with their parents and names."""
    return [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if isinstance(module, kinds)
    ]


def train(model, steps=2):
    """Some steps on the same pictures."""
    x = images(4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(y.square().mean() for y in model(x)).backward()
        optimizer.step()


def test_hooks_fire_on_every_module(build):
    model = build(out_indices=ALL)
    fired = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, y, name=name: fired.update({name: y})
        )
    maps = model(images())
    names = {
        name
        for name, module in model.named_modules()
        if not isinstance(module, nn.ModuleList)
    }
    assert fired.keys() == names
    for i, stage in enumerate(maps):
        assert fired[f'stages.{i}'] is stage
        assert fired[f'stages.{i}.blocks'] is stage


def test_backward_hooks_fire_on_every_stage(build):
    model = build()
    fired = []
    for stage in model.stages:
        stage.register_full_backward_hook(
            lambda stage, *grads: fired.append(stage)
        )
    model(images())[0].sum().backward()
    assert fired == [*model.stages][::-1]


def test_features_of_timm(build):
    features = pytest.importorskip('timm.models._features')
    model = build(out_indices=ALL).eval()
    names = [f'stages.{i}' for i in ALL]
    hooks = features.FeatureHooks(names, model.named_modules())
    maps = model(images())
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
    model = build()
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
    model, plain = build().eval(), build().eval()
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


def test_dynamic_quantization(build):
    model, x = build().eval(), images()
    count = len(leaves(model, nn.Linear))
    expected = model(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that torchao comes after it
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    layers = leaves(quantized, torch.ao.nn.quantized.dynamic.Linear)
    assert len(layers) == count > 0
    error = (quantized(x)[0] - expected).norm() / expected.norm()
    assert 0 < error < 1e-2


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('with_gradients', [False, True])
def test_a_trace_of_jit_is_right_at_every_size(build, with_gradients, with_cp):
    """And keeps none: 96 x 64 has as many tokens as 64 x 96."""
    model = build(out_indices=ALL, with_cp=with_cp).eval()
    with torch.set_grad_enabled(with_gradients):
        with warnings.catch_warnings():
            warnings.simplefilter('error', torch.jit.TracerWarning)
            traced = torch.jit.trace(model, (images(),))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        traced = torch.jit.load(file)
        for height, width in ((64, 96), (96, 64), (64, 64), (97, 130)):
            x = images(3, height, width)
            torch.testing.assert_close(traced(x), model(x), rtol=0, atol=1e-6)


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


def test_feature_extractor_of_torchvision(build):
    model = build(out_indices=ALL, drop_path_rate=0.2)
    names = {f'stages.{i}': str(i) for i in ALL}
    extractor = create_feature_extractor(model, names).eval()
    x = images(1, 96, 64)
    for a, b in zip(extractor(x).values(), model.eval()(x), strict=True):
        torch.testing.assert_close(a, b)
    last = create_feature_extractor(model, ['stages.1.blocks.0']).eval()
    torch.testing.assert_close(
        last(x)['stages.1.blocks.0'],
        model.stages[1].blocks[0](
            model.stages[1].downsample(model.stages[0](model.stem(x)))
        ),
    )


def test_built_without_memory(build):
    model = build(out_indices=ALL, drop_path_rate=0.7).eval()
    with torch.device('meta'):
        empty = build(out_indices=ALL, drop_path_rate=0.7).eval()
    assert {t.device.type for t in empty.state_dict().values()} == {'meta'}
    for a, b in zip(empty.modules(), model.modules(), strict=True):
        assert a.extra_repr() == b.extra_repr()
    empty.load_state_dict(model.state_dict(), assign=True)
    x = images()
    torch.testing.assert_close(empty(x), model(x), rtol=0, atol=0)


def test_counted_by_mmengine(build):
    """What mmpretrain's and mmseg's get_flops.py ask."""
    model = build().eval()
    counter = FlopAnalyzer(model, (images(1),)).unsupported_ops_warnings(False)
    by_operator = counter.by_operator()
    ours = sum(
        by_operator[name] for name in ('conv', 'linear', 'scan')
    )  # not norms
    assert by_operator['scan'] > 0
    assert ours == count_macs(Tensors(model), (3, 64, 96))


class Tensors(nn.Module):
    """A backbone that is called as a model of MMEngine is."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x, mode):
        return self.backbone(x)
