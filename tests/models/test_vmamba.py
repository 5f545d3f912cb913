"""VMamba against what the released implementation was recorded to do."""

import pytest
import torch
import torch.nn.functional as F
from golden import (
    GOLDEN,
    Classifier,
    changed,
    check_there_and_back,
    recorded,
    recorded_json,
    released_weights,
)
from mmengine.registry import MODELS

from vcmamba_mm import NormGlobalAveragePooling, VMamba
from vcmamba_mm.checkpoints import (
    CheckpointError,
    from_released,
    loading,
    read_checkpoint,
    to_released,
)
from vcmamba_mm.models.vmamba.mixer import PathLinear

RELEASE = GOLDEN / 'vmamba/tiny_release.pth'
DOWNSTREAM = GOLDEN / 'vmamba/tiny_downstream.pth'
ARCH = dict(embed_dims=(12, 20, 36, 68), depths=(1, 2, 2, 1), expand=2)
ALL = (0, 1, 2, 3)
CLOSE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def io():
    return recorded('vmamba')


def backbone(checkpoint=None, **kwargs):
    model = VMamba(
        **dict(dict(arch=ARCH), **kwargs),
        init_cfg=checkpoint
        and dict(type='Pretrained', checkpoint=str(checkpoint)),
    )
    model.init_weights()
    return model.eval()


def classifier(arch=ARCH, classes=10):
    model = VMamba(arch)
    neck = NormGlobalAveragePooling(model.embed_dims[-1])
    return Classifier(model, neck, classes)


@pytest.mark.parametrize(
    'arch, parameters',
    [
        ('t', 29_478_528),
        ('s', 49_377_216),
        ('b', 87_530_752),
        ('t_s2l5', 29_935_296),
        ('s_s1l20', 48_242_304),
        ('b_s1l20', 85_587_456),
    ],
)
def test_parameter_counts(arch, parameters):
    """The release's, less the classifier."""
    with torch.device('meta'):
        model = VMamba(arch)
        downstream = VMamba(arch, out_indices=ALL, out_norms=True)
    assert sum(p.numel() for p in model.parameters()) == parameters
    norms = 2 * sum(model.embed_dims)
    assert sum(p.numel() for p in downstream.parameters()) == (
        parameters + norms
    )


@pytest.mark.parametrize('variant', ['T', 'S', 'B'])
def test_all_released_keys_there_and_back(variant):
    with torch.device('meta'):
        model = classifier(variant, 1000)
    check_there_and_back('vmamba', variant, model)


def test_the_values_come_back(tmp_path):
    for path in (RELEASE, DOWNSTREAM):
        checkpoint = read_checkpoint(path)
        weights = checkpoint.get('model') or checkpoint['state_dict']
        back = to_released(from_released(weights))
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_every_recorded_map(io):
    model = backbone(RELEASE, out_indices=ALL)
    first, mixer = model.stages[0].blocks[0], model.stages[1].blocks[0].mixer
    seen = {}
    for name, module in (
        ('stem', model.stem),
        ('block1_out', first),
        ('down1_out', model.stages[1].downsample),
        ('ss2d_normed', mixer.norm),
        ('ss2d_out', mixer),
    ):
        module.register_forward_hook(
            lambda module, args, y, name=name: seen.update({name: y})
        )
    mixer.norm.register_forward_pre_hook(
        lambda module, args: seen.update(ss2d_merged=args[0])
    )
    mixer.register_forward_pre_hook(
        lambda module, args: seen.update(ss2d_in=args[0])
    )
    with torch.no_grad():
        maps = model(io['input'])
    for i, y in enumerate(maps):
        seen[f'stage{i + 1}'] = y
    size = io['ss2d_in'].shape[2:]
    for name, y in seen.items():
        if name.startswith('ss2d'):
            y = y.unflatten(1, size) if y.dim() == 3 else y
            y = y.movedim(-1, 1)
        torch.testing.assert_close(y, io[name], **CLOSE, msg=name)
    assert len(seen) == 11


@pytest.mark.parametrize('prefix', ['', 'odd_'])
def test_downstream_maps(io, prefix):
    model = backbone(DOWNSTREAM, out_indices=ALL, out_norms=True)
    with torch.no_grad():
        maps = model(io['input_odd' if prefix else 'input'])
    for i, y in enumerate(maps):
        torch.testing.assert_close(y, io[f'{prefix}out{i + 1}'], **CLOSE)


def test_classifier_loss_and_every_gradient(io):
    model = classifier().load(RELEASE).eval()
    with torch.no_grad():
        for x, y in (('input', 'logits'), ('input_odd', 'odd_logits')):
            torch.testing.assert_close(model(io[x]), io[y], **CLOSE)
    loss = F.cross_entropy(model.train()(io['input']), io['label'])
    assert loss.item() == pytest.approx(io['loss'].item(), rel=1e-5)
    loss.backward()
    ours = {key: p.grad for key, p in model.named_parameters()}
    norms = {k: g.norm().item() for k, g in to_released(ours).items()}
    assert norms == pytest.approx(
        recorded_json('vmamba', 'tiny_grad_norms.json'), rel=1e-4
    )


def test_a_classifiers_file_for_a_segmenter(monkeypatch):
    lines = []
    monkeypatch.setattr(loading, 'print_log', lambda s, **kw: lines.append(s))
    model = backbone(RELEASE, out_indices=ALL, out_norms=True)
    plain = backbone(RELEASE, out_indices=ALL)
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    for norm in model.out_norms.values():
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    assert lines[0] == (
        f'VMamba: all 128 keys loaded from {RELEASE}, and the norms of the '
        'outputs are new; its head, neck left over'
    )


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda w: w.pop('layers.0.blocks.0.op.Ds'),
            'missing: stages.0.blocks.0.mixer.D',
        ),
        (
            lambda w: w.update({'layers.9.x': torch.ones(1)}),
            '1 of 133 keys are not those of a released VMamba: layers.9.x',
        ),
        (
            lambda w: w.update({'outnorm0.weight': torch.ones(12)}),
            'not those of a released VMamba: outnorm0.weight',
        ),
        (
            lambda w: w.update(
                {'layers.0.blocks.0.op.A_logs': torch.ones(6, 1)}
            ),
            'not those of a released VMamba: layers.0.blocks.0.op.A_logs',
        ),
    ],
)
def test_anything_else_is_an_error(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        backbone(
            changed(RELEASE, tmp_path, change), out_indices=ALL, out_norms=True
        )


def test_norms_of_outputs_that_are_not_there(tmp_path):
    path = changed(
        DOWNSTREAM, tmp_path, lambda w: w.pop('backbone.outnorm2.bias')
    )
    with pytest.raises(CheckpointError, match='missing: out_norms.2.bias'):
        backbone(path, out_indices=ALL, out_norms=True)
    with pytest.raises(CheckpointError, match='left over: out_norms.0.bias'):
        backbone(DOWNSTREAM)


def test_projections_kept_as_convolutions(tmp_path):
    def unflatten(weights):
        for name in ('op.in_proj', 'op.out_proj', 'mlp.fc1', 'mlp.fc2'):
            key = f'layers.1.blocks.0.{name}.weight'
            weights[key] = weights[key][..., None, None]

    model = backbone(changed(RELEASE, tmp_path, unflatten))
    expected = backbone(RELEASE).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize('arch, its', [('t', 'T'), ('t_s2l5', 'S')])
def test_a_file_of_another_variant(tmp_path, monkeypatch, arch, its):
    class Foreign:  # as ResNets of others have it
        arch_settings = {18: 'BasicBlock'}

    monkeypatch.setitem(MODELS.module_dict, 'Foreign', Foreign)
    path = tmp_path / 'other.pth'
    weights = {
        key: torch.zeros(()).expand(weight.shape)
        for key, weight in released_weights('vmamba', its).items()
    }
    torch.save(dict(model=weights), path)
    other = VMamba('s' if its == 'T' else arch)
    other.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(
        CheckpointError, match=rf"It holds weights of VMamba\('{its.lower()}'"
    ):
        other.init_weights()


def test_the_first_version_is_named(tmp_path):
    path = tmp_path / 'vanilla.pth'
    key = 'layers.0.blocks.0.self_attention.A_logs'
    torch.save(dict(model={key: torch.ones(4, 16)}), path)
    with pytest.raises(CheckpointError, match='first version.*vanilla'):
        backbone(path)


def test_initial_values():
    """As the release draws them."""
    torch.manual_seed(0)
    model = VMamba('t', mixer_cfg=dict(d_state=3))
    block = model.stages[2].blocks[0]
    mixer = block.mixer
    log = torch.tensor([1.0, 2.0, 3.0]).log()
    assert torch.equal(mixer.A_log.detach(), log.expand(4, 384, 3))
    assert (mixer.D == 1).all()
    delta = F.softplus(mixer.dt_bias.detach())
    assert delta.shape == (4, 384)
    assert 0.000999 < delta.min() < 0.0011 and 0.09 < delta.max() < 0.1001
    # log-uniform: half of them below the geometric mean
    assert (delta < 0.01).float().mean() == pytest.approx(0.5, abs=0.05)
    for bound, weight in (
        (384**-0.5, mixer.x_proj.weight),
        (24**-0.5, mixer.dt_proj.weight),
        (1 / 3, mixer.dwconv.weight),
        ((9 * 192) ** -0.5, model.stages[2].downsample[0].weight),
        ((9 * 192) ** -0.5, model.stages[2].downsample[0].bias),
        (27**-0.5, model.stem[0].weight),
    ):
        assert 0.95 * bound < weight.abs().max() <= bound
        std = weight.std().item()
        assert std == pytest.approx(bound / 3**0.5, rel=0.1)
    for linear in (mixer.in_proj, mixer.out_proj, block.mlp.fc1):
        std = linear.weight.std().item()
        assert std == pytest.approx(0.02, rel=0.02)
    assert (block.mlp.fc1.bias == 0).all()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='l'), "unknown arch 'l'.*'t', 's', 'b', 't_s2l5'"),
        (dict(arch=dict(embed_dims=(8, 16), depths=(1, 1))), "'expand'"),
        (dict(mixer_cfg=dict(backend='cuda')), "unknown scan backend 'cuda'"),
        (dict(mixer_cfg=dict(conv_size=4)), 'conv_size must be odd'),
        (
            dict(mixer_cfg=dict(expand=2)),
            'mixer_cfg: expand is not taken here, it comes from arch',
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VMamba(**kwargs)


def test_one_pixel():
    maps = backbone(out_indices=ALL, out_norms=True)(torch.randn(1, 3, 1, 1))
    assert [tuple(y.shape) for y in maps] == [
        (1, dims, 1, 1) for dims in ARCH['embed_dims']
    ]


@pytest.mark.parametrize('tokens', [(2, 5), (1, 1), (3, 7, 2)])
def test_a_linear_map_for_each_path(tokens):
    """With gradients and without, of a part of a tensor as of a whole one."""
    linear = PathLinear(4, 3, 6)
    x = torch.randn(*tokens, 4, 5)[..., :3]
    expected = torch.einsum('...pi,poi->...po', x, linear.weight)
    torch.testing.assert_close(linear(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), expected)
        torch.testing.assert_close(linear(x.double().float()), expected)
        y = torch.func.vmap(linear, in_dims=0)(x)
        torch.testing.assert_close(y, expected)
