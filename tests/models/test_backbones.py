"""What every backbone does, and what tools that take it apart find.

A new family adds its smallest model to ``BACKBONES``.
"""

import copy
import io
import warnings
from typing import NamedTuple

import pytest
import torch
from conftest import TINY, randomize_norms
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import set_checkpoint_early_stop
from torchvision.models.feature_extraction import create_feature_extractor

from vcmamba_mm.analysis.complexity import count_macs
from vcmamba_mm.deploy import fuse
from vcmamba_mm.models.layers import Stage


class Family(NamedTuple):
    """A backbone of four stages.

    Attributes:
        cfg: With values at which every branch is seen.
        dims: Channels of each stage.
        strides: Pixels from token to token, of each stage.
        smallest: Height and width of the smallest picture.
    """

    cfg: dict
    dims: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    smallest: int = 1


BACKBONES = dict(
    VCMamba=Family(
        dict(arch=TINY, img_size=64, layer_scale_init_value=1.0),
        TINY['embed_dims'],
        smallest=32,
    ),
)
ALL = (0, 1, 2, 3)


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


@pytest.fixture
def family(name):
    return BACKBONES[name]


@pytest.fixture
def build(name, family):
    """Build a backbone in training mode."""

    def build(registry=MODELS, **kwargs):
        torch.manual_seed(0)
        return registry.build(dict(family.cfg, type=name, **kwargs)).train()

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


def loss(maps):
    """Of the cubes: the mean square of a normed map is always 1."""
    return sum(y.pow(3).mean() for y in maps)


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
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg'])
def test_builds_from_every_scope(build, family, scope):
    registry = pytest.importorskip(f'{scope}.registry').MODELS
    (out,) = build(registry)(images(2, 64, 64))
    rows = 64 // family.strides[-1]
    assert out.shape == (2, family.dims[-1], rows, rows)


def test_any_input_size(build, family):
    """Every height and every width up to 257, H != W, batch 1."""
    model = build(out_indices=ALL).eval()
    sizes = range(family.smallest, 258)
    # 97 has no common divisor with it: each size occurs once on each side.
    for i, height in enumerate(sizes):
        width = sizes[97 * i % len(sizes)]
        with torch.no_grad():
            outs = model(images(1, height, width))
        for out, stride, dims in zip(outs, family.strides, family.dims):
            map_size = (-(-height // stride), -(-width // stride))
            assert out.shape == (1, dims, *map_size)
            assert out.isfinite().all()


def test_output_order_follows_out_indices(build, family):
    outs = build(out_indices=(-1, 0)).eval()(images())
    assert [out.shape[1] for out in outs] == [family.dims[-1], family.dims[0]]
    assert isinstance(build(out_indices=2)(images()), tuple)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='x'), "unknown arch 'x'"),
        (dict(out_indices=(0, 4)), 'out_indices must be from -4 to 3.*got 4'),
        (dict(frozen_stages=4), 'frozen_stages must be from -1 to 3'),
    ],
)
def test_wrong_arguments(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize('frozen', [-1, 0, 2, 3])
def test_frozen_stages(build, frozen):
    model = build(frozen_stages=frozen, drop_path_rate=0.1)
    frozen_modules = [model.stem, *model.stages[: frozen + 1]] * (frozen >= 0)
    for module in frozen_modules:
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
    for module in model.stages[frozen + 1 :]:
        assert all(m.training for m in module.modules())
        assert all(p.requires_grad for p in module.parameters())
    if model.pos_embed is not None:
        stage, _ = model.pos_embed_place
        assert model.pos_embed.requires_grad == (frozen < stage)


def test_norm_eval(build):
    model = build(norm_eval=True)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert not any(m.training for m in norms)
    assert model.training and model.stages[0].training


def test_every_parameter_gets_a_gradient(build):
    model = build()
    loss(model(images())).backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    # A bias before a batch norm cancels out, up to rounding.
    assert not missing


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_drop_path_grows_linearly_over_all_blocks(build, dtype):
    torch.set_default_dtype(dtype)
    try:
        model = build(drop_path_rate=0.7)
    finally:
        torch.set_default_dtype(torch.float32)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [block.drop_path.drop_prob for block in blocks]
    last = len(blocks) - 1
    assert rates == pytest.approx([0.7 * i / last for i in range(last + 1)])


def test_layers_for_layer_wise_decay(build):
    """From the stem, 0, to what comes after the blocks, the last one."""
    model = build()
    stem, blocks = [model.stem], [b for s in model.stages for b in s.blocks]
    layers = {
        id(parameter): i
        for i, module in enumerate(stem + blocks)
        for parameter in module.parameters()
    }
    last = 1 + len(blocks)
    assert model.get_layer_depth('norm3.weight') == (last, 1 + last)
    for wrapped in ((), Stage, tuple(map(type, blocks))):
        apply_activation_checkpointing(
            model, check_fn=lambda m, kinds=wrapped: isinstance(m, kinds)
        )
        found = {
            id(parameter): model.get_layer_depth(name)[0]
            for name, parameter in model.named_parameters()
        }
        assert layers.items() <= found.items()


def test_stages_after_the_last_output_do_not_run(build):
    """DDP fails on parameters that get no gradient."""
    model = build(out_indices=(0, 1))
    for stage in model.stages[2:]:
        stage.register_forward_hook(lambda *args: pytest.fail('it ran'))
    loss(model(images())).backward()
    for name, parameter in model.named_parameters():
        early = not name.startswith(('stages.2.', 'stages.3.'))
        if name == 'pos_embed':
            early = model.pos_embed_place[0] < 2
        assert parameter.requires_grad == early, name
        assert (parameter.grad is not None) == early, name


def test_channels_last_changes_the_memory_only(build):
    first = build(out_indices=ALL).eval()
    last = build(out_indices=ALL, channels_last=True).eval()
    formats = []
    for module in last.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, args, y: formats.append(
                    y.is_contiguous(memory_format=torch.channels_last)
                )
            )
    # sizes without a dimension of 1, where both formats are the same
    x = images(2, 64, 96)
    for a, b in zip(first(x), last(x)):
        torch.testing.assert_close(b, a)
        assert b.is_contiguous()  # RoIAlign and others read its memory
    assert formats and all(formats)


@pytest.mark.parametrize('early_stop', [True, False])
def test_checkpointing_changes_nothing(build, early_stop):
    """Neither outputs, nor gradients, nor running statistics."""
    plain, saving = build(), build(with_cp=True)
    calls = []
    for model in (plain, saving):
        first, *_ = model.stages[-1].blocks[-1].children()
        first.register_forward_hook(
            lambda *args, model=model: calls.append(model)
        )
    x = images(2, 64, 64)
    with set_checkpoint_early_stop(early_stop):
        for model in (plain, saving):
            model.out = model(x)
            loss(model.out).backward()
    assert calls == [plain, saving, saving]
    torch.testing.assert_close(saving.out, plain.out, rtol=0, atol=0)
    for a, b in zip(saving.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(saving.buffers(), plain.buffers()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


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
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    }
    assert fired.keys() == names
    for i, y in enumerate(maps):
        assert fired[f'stages.{i}'].shape == y.shape
        assert fired[f'stages.{i}'] is fired[f'stages.{i}.blocks']


def test_backward_hooks_fire_on_every_stage(build):
    model = build()
    fired = []
    for stage in model.stages:
        stage.register_full_backward_hook(
            lambda stage, *grads: fired.append(stage)
        )
    loss(model(images())).backward()
    assert fired == [*model.stages][::-1]


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
