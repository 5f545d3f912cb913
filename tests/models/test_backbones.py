"""What every backbone does."""

import copy
import pickle
from functools import partial

import pytest
import torch
from smallest import (
    ALL,
    BACKBONES,
    build_smallest,
    images,
    loss,
    of_stages,
)
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import set_checkpoint_early_stop

from vcmamba_mm.models.base import InputSizeError
from vcmamba_mm.models.layers import Stage


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


with_batch_norms = pytest.mark.parametrize(
    'name', [name for name in BACKBONES if name != 'VMamba'], indirect=True
)


@pytest.fixture
def family(name):
    return BACKBONES[name]


@pytest.fixture
def build(name):
    return partial(build_smallest, name)


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg', 'mmdet'])
def test_builds_from_every_scope(build, family, scope):
    registry = pytest.importorskip(f'{scope}.registry').MODELS
    if scope == 'mmdet':
        pytest.importorskip('mmcv.ops')  # which its models import
    (out,) = build(registry)(images(2, 64, 64))
    rows = 64 // family.strides[-1]
    assert out.shape == (2, family.dims[-1], rows, rows)


@of_stages  # what pads to multiples of 32 has not so many cases
def test_any_input_size(build, family):
    """Every height and every width up to 257, H != W, batch 1."""
    model = build(out_indices=ALL).eval()
    assert model.total_stride == family.strides[-1]
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
        (dict(out_indices=()), 'out_indices must be from -4 to 3.*got none'),
        (dict(frozen_stages=4), 'frozen_stages must be from -1 to 3'),
        (
            dict(mixer_cfg=dict(embed_dims=8)),
            'mixer_cfg: embed_dims is not taken here, it comes from arch',
        ),
    ],
)
def test_wrong_arguments(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize('shorter', ['height', 'width'])
def test_too_small_input(build, family, shorter):
    least = family.smallest
    size = dict(dict(height=least, width=least + 5), **{shorter: least - 1})
    message = (
        f'input of {size["height"]} x {size["width"]} pixels is too small: '
        f'resize or pad it to at least {least} x {least}$'
    )
    with pytest.raises(InputSizeError, match=message):
        build()(images(1, **size))


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


@with_batch_norms
def test_norm_eval(build):
    model = build(norm_eval=True)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and not any(m.training for m in norms)
    assert model.training and model.stages[0].training


@with_batch_norms
def test_norms_that_do_not_learn(build):
    cfg = dict(type='BN', requires_grad=False)
    model = build(out_indices=ALL, norm_cfg=cfg)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_every_parameter_gets_a_gradient(build):
    model = build(out_indices=ALL)
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


@of_stages
def test_stages_after_the_last_output_do_not_run(build):
    """DDP fails on parameters that get no gradient."""
    model = build(out_indices=(0, 1))
    for stage in model.stages[2:]:
        stage.register_forward_hook(lambda *args: pytest.fail('it ran'))
    loss(model(images())).backward()
    for name, parameter in model.named_parameters():
        early = not name.startswith(('stages.2.', 'stages.3.', 'final_norm.'))
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


def test_hooks_fire_on_every_module(build, family):
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
        assert fired[f'stages.{i}'].shape == y.shape or not family.of_stages
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


@torch.no_grad()
def test_copies_are_models_of_their_own(build):
    model, x = build(out_indices=ALL).eval(), images()
    expected = model(x)
    for its in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(its(x), expected, rtol=0, atol=0)
        for weight in its.parameters():
            weight.zero_()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


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
