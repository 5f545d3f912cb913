"""MambaVision against what the released implementation was recorded to do."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from golden import (
    GOLDEN,
    Classifier,
    check_there_and_back,
    recorded,
    recorded_json,
)

from vcmamba_mm import MambaVision, NormGlobalAveragePooling
from vcmamba_mm.checkpoints import (
    CheckpointError,
    from_released,
    read_checkpoint,
    to_released,
    write_checkpoint,
)
from vcmamba_mm.models.mambavision.blocks import to_map, to_windows

RELEASE = GOLDEN / 'mambavision/tiny_release.pth'
ARCH = dict(
    embed_dims=(10, 20, 40, 80),
    depths=(1, 2, 3, 2),
    stem_dims=8,
    num_heads=(4, 8),
    layer_scale=0.5,
)
WINDOWS = (4, 3)
ALL = (0, 1, 2, 3)
CLOSE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def io():
    return {
        **recorded('mambavision'),
        **recorded('mambavision', 'tiny_io2.npz'),
    }


def backbone(checkpoint=None, **kwargs):
    model = MambaVision(
        **dict(dict(arch=ARCH, window_size=WINDOWS), **kwargs),
        init_cfg=checkpoint
        and dict(type='Pretrained', checkpoint=str(checkpoint)),
    )
    if checkpoint:
        model.init_weights()
    return model.eval()


def classifier(classes=10, **kwargs):
    model = backbone(**kwargs)
    neck = NormGlobalAveragePooling(
        model.embed_dims[-1], norm_cfg=dict(type='BN')
    )
    return Classifier(model, neck, classes)


@pytest.mark.parametrize(
    'arch, parameters',
    [
        ('t', 31_151_968),
        ('t2', 34_461_728),
        ('s', 49_370_048),
        ('b', 96_658_240),
        ('l', 226_388_912),
        ('l2', 239_982_688),
        ('l3', 737_517_376),
    ],
)
def test_parameter_counts(arch, parameters):
    """The release's, without classifier and last norm."""
    with torch.device('meta'):
        model = MambaVision(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize('variant', ['T', 'T2', 'S', 'B', 'L', 'L2'])
def test_all_released_keys_there_and_back(variant):
    with torch.device('meta'):
        model = classifier(1000, arch=variant)
    check_there_and_back('mambavision', variant, model)


def test_half_of_the_blocks_scan():
    """The larger half, at the beginning."""
    for stage, mixers in zip(MambaVision('s').stages[2:], (4, 3)):
        kinds = [hasattr(block.mixer, 'A_log') for block in stage.blocks]
        assert kinds == sorted(kinds, reverse=True)
        assert sum(kinds) == mixers


def test_every_recorded_map(io):
    model = classifier().load(RELEASE).eval()
    stages, seen = model.backbone.stages, {}
    block, attends = stages[2].blocks[0], stages[2].blocks[2]

    def record(name, module):
        module.register_forward_hook(
            lambda module, args, y: seen.update(
                {f'{name}_in': args[0], f'{name}_out': y}
            )
        )

    record('stem', model.backbone.stem)
    record('pooled', model.neck)
    record('mixer', block.mixer)
    record('mlp', block.mlp)
    record('attention', attends.mixer)
    for i, stage in enumerate(stages):
        record(f'stage{i + 1}', stage)
        record(f'level{i}', stage.downsample)
    with torch.no_grad():
        seen['logits'] = model(io['input'])
    expected = dict(
        {f'stage{i}_out': io[f'stage{i}'] for i in (1, 2, 3, 4)},
        **{f'level{i}_out': io[f'level{i}'] for i in (1, 2, 3)},
        **{
            f'{name}_{end}': io[f'{name}_{end}']
            for name in ('mixer', 'mlp', 'attention')
            for end in ('in', 'out')
        },
        stem_out=io['stem'],
        pooled_out=io['pooled'],
        logits=io['logits'],
    )
    seen['pooled_out'] = seen['pooled_out'][0]
    for name, y in expected.items():
        torch.testing.assert_close(seen[name], y, **CLOSE, msg=name)


def with_out_norms(tmp_path, io):
    """The recorded weights in the layout of a released segmenter."""
    weights = read_checkpoint(RELEASE)['state_dict']
    state_dict = {
        f'backbone.{key}': value
        for key, value in weights.items()
        if not key.startswith(('norm.', 'head.'))
    }
    for i in ALL:
        for name in ('weight', 'bias'):
            state_dict[f'backbone.outnorm{i}.{name}'] = io[
                f'outnorm{i}_{name}'
            ]
    state_dict['decode_head.conv_seg.bias'] = torch.zeros(3)
    path = tmp_path / 'segmenter.pth'
    write_checkpoint(dict(meta={}, state_dict=state_dict), path)
    back = to_released(from_released(state_dict))
    assert back.keys() == state_dict.keys()
    return path


@pytest.mark.parametrize(
    'windows, prefix', [(WINDOWS, ''), ((16, 8), 'large_windows_')]
)
def test_downstream_maps(io, tmp_path, windows, prefix):
    """Also of windows that are larger than the maps."""
    path = with_out_norms(tmp_path, io)
    model = backbone(
        path, out_indices=ALL, out_norms=True, window_size=windows
    )
    with torch.no_grad():
        maps = model(io['input'])
    for i, y in enumerate(maps):
        torch.testing.assert_close(y, io[f'{prefix}out{i + 1}'], **CLOSE)


def test_other_recorded_logits(io):
    model = classifier(window_size=(4, 2)).load(RELEASE).eval()
    with torch.no_grad():
        y = model(io['input_divisible'])
    torch.testing.assert_close(y, io['logits_divisible'], **CLOSE)

    model = classifier(arch=dict(ARCH, layer_scale=None)).eval()
    weights = from_released(read_checkpoint(RELEASE)['state_dict'])
    weights = {k: v for k, v in weights.items() if 'gamma' not in k}
    model.load_state_dict(weights)
    with torch.no_grad():
        y = model(io['input'])
    torch.testing.assert_close(y, io['logits_without_layer_scale'], **CLOSE)


def test_loss_statistics_and_every_gradient(io):
    model = classifier().load(RELEASE).train()
    logits = model(io['input'])
    torch.testing.assert_close(logits, io['train_logits'], **CLOSE)
    loss = F.cross_entropy(logits, io['label'])
    assert loss.item() == pytest.approx(io['loss'].item(), rel=1e-5)
    norm = model.neck.norm
    for name in ('running_mean', 'running_var'):
        torch.testing.assert_close(
            getattr(norm, name), io[f'train_{name}'], rtol=1e-5, atol=1e-5
        )
    loss.backward()
    ours = {key: p.grad for key, p in model.named_parameters()}
    norms = {k: g.norm().item() for k, g in to_released(ours).items()}
    expected = recorded_json('mambavision', 'tiny_grad_norms.json')
    # Seven are of constants that a batch norm takes out: rounding.
    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_files_of_hugging_face(tmp_path):
    weights = read_checkpoint(RELEASE)['state_dict']
    path = tmp_path / 'model.pth'
    torch.save({f'model.{key}': v for key, v in weights.items()}, path)
    expected = backbone(RELEASE).state_dict()
    found = backbone(path).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_file_with_the_arguments_of_its_run(tmp_path):
    """timm saves them so."""
    checkpoint = read_checkpoint(RELEASE)
    path = tmp_path / 'run.pth.tar'
    torch.save(dict(checkpoint, args=Namespace(model='mamba')), path)
    backbone(path)


def test_a_file_without_layer_scale(tmp_path):
    checkpoint = read_checkpoint(RELEASE)
    weights = checkpoint['state_dict']
    path = tmp_path / 'other.pth'
    torch.save(
        dict(
            state_dict={k: v for k, v in weights.items() if 'gamma' not in k}
        ),
        path,
    )
    with pytest.raises(CheckpointError, match='missing: .*blocks.0.gamma1'):
        backbone(path)


def test_windows_and_back():
    """Row after row of windows, and of tokens in them; zeros fill the rest."""
    x = torch.arange(1.0, 16).reshape(1, 1, 3, 5)
    windows = to_windows(x, 2)
    assert windows[:, :, 0].tolist() == [
        [1, 2, 6, 7],
        [3, 4, 8, 9],
        [5, 0, 10, 0],
        [11, 12, 0, 0],
        [13, 14, 0, 0],
        [15, 0, 0, 0],
    ]
    x = torch.randn(2, 3, 5, 7)
    for size in (1, 2, 4, 8, None):
        assert torch.equal(to_map(to_windows(x, size), x, size), x)
    assert torch.equal(to_windows(x[:1], 8)[0, 8], x[0, :, 1, 0])


def test_a_window_that_is_the_map():
    """Equal where the windows are as large as the maps, and never padded."""
    x = torch.randn(2, 3, 64, 64)
    models = [
        backbone(RELEASE, window_size=windows, out_indices=ALL)
        for windows in ((4, 2), 'map')
    ]
    for a, b in zip(*(model(x) for model in models)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    lengths = []
    models[1].stages[2].blocks[0].register_forward_hook(
        lambda block, args, y: lengths.append(y.shape[:2])
    )
    models[1](torch.randn(2, 3, 70, 100))
    assert lengths == [(2, 5 * 7)]


def test_drop_path_of_each_window():
    model = backbone(drop_path_rate=0.9, arch=dict(ARCH, layer_scale=1.0))
    block = model.train().stages[3].blocks[-1]
    x = torch.randn(64, 9, 80)
    unchanged = (block(x) == x).flatten(1).all(1)
    assert 0 < unchanged.sum() < 64
    # 0.9 ** 2 of them lose both branches
    assert unchanged.float().mean().item() == pytest.approx(0.81, abs=0.15)


def test_initial_values():
    """As the release draws them."""
    torch.manual_seed(0)
    model = MambaVision('b')
    stage = model.stages[2]
    scans, attends = stage.blocks[0], stage.blocks[-1]
    for linear in (
        *(scans.mixer.in_proj, scans.mixer.dt_proj, scans.mlp.fc1),
        *(attends.mixer.qkv, attends.mixer.proj),
    ):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert linear.bias is None or (linear.bias == 0).all()
    log = torch.arange(1.0, 9).log()
    assert torch.equal(scans.mixer.A_log.detach(), log.expand(256, 8))
    assert (scans.mixer.D == 1).all() and (scans.gamma1 == 1e-5).all()
    bound = 3**-0.5
    assert 0.95 * bound < scans.mixer.conv_x.weight.abs().max() <= bound
    assert (
        model.stem[1].eps == 1e-4
        and model.stages[0].blocks[0].norm1.eps == 1e-5
    )


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='xl'), "unknown arch 'xl'.*'t', 't2', 's'"),
        (dict(window_size=(14, 7, 7)), 'window_size must be'),
        (dict(window_size='maps'), "window_size must be 'map'"),
        (dict(window_size=14), 'window_size must be'),
        (dict(window_size=(0, 7)), 'window_size must be'),
        (dict(window_size='14'), 'window_size must be'),
        (dict(arch=dict(ARCH, num_heads=(3, 8))), '3 heads do not divide 40'),
        (dict(arch=dict(ARCH, num_heads=())), 'num_heads must have'),
        (dict(mixer_cfg=dict(conv_size=2)), 'conv_size must be odd'),
        (dict(mixer_cfg=dict(backend='cuda')), "unknown scan backend 'cuda'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MambaVision(**kwargs)
