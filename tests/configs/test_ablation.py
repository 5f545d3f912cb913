"""The configs under configs/ablation, and the options that they use."""

import ast
import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    ROOT,
    randomize_norms,
)
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.nn import BatchNorm2d

from vcmamba_mm import VCMamba
from vcmamba_mm.analysis.complexity import model_complexity
from vcmamba_mm.deploy import fold_norms, fuse
from vcmamba_mm.models import PlainMambaMixer
from vcmamba_mm.models.vcmamba.blocks import MDMBlock
from vcmamba_mm.models.vcmamba.mixer import MultiDirectionalMamba

FOLDER = ROOT / 'configs/ablation'
# Of VCMamba-B: channels, inner channels and ffn's channels of stage 4, blocks.
C, E, H, MDM = 512, 1024, 2048, 4
BASE = 30_937_832
SECOND_HEAD = C * 1000 + 1000

DEEPER = dict(embed_dims=(64, 128, 320, 512), depths=(4, 4, 12, 10), num_mdm=4)
CONVS = dict(embed_dims=(64, 128, 320, 512), depths=(4, 4, 12, 8), num_mdm=0)
LAYER_NORM = dict(type='mmpretrain.LN2d')
# What each config changes in the backbone.
CHANGES = {
    'plain-mamba_8xb128': dict(
        arch=DEEPER,
        mixer_cfg=dict(proj='linear', gate=True, with_norm=False),
        mdm_cfg=dict(ffn=None, norm_cfg=LAYER_NORM),
    ),
    'no-gate_8xb128': dict(
        arch=DEEPER,
        mixer_cfg=dict(proj='linear', with_norm=False),
        mdm_cfg=dict(ffn=None, norm_cfg=LAYER_NORM),
    ),
    'interleaved_8xb128': dict(
        mixer_cfg=dict(proj='linear', conv_size=3, with_norm=False),
        mdm_cfg=dict(ffn='linear'),
    ),
    'layer-norm_8xb128': dict(
        mixer_cfg=dict(proj='linear', conv_size=3),
        mdm_cfg=dict(ffn='linear'),
    ),
    'conv-proj_8xb128': dict(mixer_cfg=dict(proj='conv')),
    'conv-only_8xb128': dict(arch=CONVS),
    'raster-paths_8xb128': dict(mixer_cfg=dict(snake=False)),
    'path-params_8xb128': dict(mixer_cfg=dict(param_order='path')),
    'conv3x3_8xb128': dict(mixer_cfg=dict(conv_size=3)),
    '1-path_8xb128': dict(mixer_cfg=dict(num_paths=1)),
    '2-paths_8xb128': dict(mixer_cfg=dict(num_paths=2)),
    '384_8xb32': dict(img_size=384),
    '512_8xb16': dict(img_size=512),
    '1024_8xb4': dict(img_size=1024),
}
SIZES = ('384_8xb32', '512_8xb16', '1024_8xb4')

# Parameters more or less than the base's.
NORMS = 2 * E + 2 * C  # after the projections
BIASES = E + C  # of the projections
KERNEL = (49 - 9) * E  # 7x7 to 3x3
CONV_IN_FFN = 9 * H + H + 2 * H + 2 * H + 2 * C  # and the ffn's three norms
ROW_5 = -MDM * NORMS
ROW_4 = ROW_5 - MDM * (KERNEL + CONV_IN_FFN)
ROW_3 = ROW_4 - MDM * 2 * E
# The ffns become blocks of their own: a layer scale, and no norm in front.
ROW_2 = -MDM * (NORMS + 2 * E) + MDM * (C - 2 * C)
ROW_1 = ROW_2 + MDM * (C * E + E)
MIXER = (
    (2 * C * E + BIASES + NORMS + 50 * E)  # projections, convolution
    + (E * 64 + 32 * E + E)  # delta, B, C
    + (16 * E + E + 5 * 16)  # A, D, theta
    + 2 * E  # LayerNorm
)
FFN = 2 * C * H + H + C + CONV_IN_FFN
POSITIONS = 49 * C
MORE = {
    'plain-mamba_8xb128': ROW_1,
    'no-gate_8xb128': ROW_2,
    'interleaved_8xb128': ROW_3,
    'layer-norm_8xb128': ROW_4,
    'conv-proj_8xb128': ROW_5,
    'conv-only_8xb128': 6 * (FFN + C)
    - MDM * (MIXER + FFN + 4 * C)
    - POSITIONS,
    'raster-paths_8xb128': 0,
    'path-params_8xb128': 0,
    'conv3x3_8xb128': -MDM * KERNEL,
    '1-path_8xb128': 0,
    '2-paths_8xb128': 0,
    '384_8xb32': 12 * 12 * C - POSITIONS,
    '512_8xb16': 16 * 16 * C - POSITIONS,
    '1024_8xb4': 32 * 32 * C - POSITIONS,
}
# Table 4 of arXiv 2509.04669: parameters in millions, and with how many heads
# ours come to them.
TABLE_4 = {
    'plain-mamba_8xb128': (33.0, 1),
    'no-gate_8xb128': (31.0, 1),
    'interleaved_8xb128': (31.1, 2),
    'layer-norm_8xb128': (31.1, 2),
    'conv-proj_8xb128': (31.4, 2),
    None: (31.5, 2),  # the base
}


def load(name):
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    return Config.fromfile(FOLDER / f'vcmamba_b_{name}_in1k.py')


def base():
    return Config.fromfile(ROOT / 'configs/vcmamba_b_8xb128_in1k.py')


def test_no_config_is_forgotten():
    names = {f'vcmamba_b_{name}_in1k' for name in CHANGES}
    assert {path.stem for path in FOLDER.iterdir()} == names


@pytest.mark.parametrize('name', CHANGES)
def test_changes_what_it_says(name):
    cfg, expected = load(name).to_dict(), base().to_dict()
    expected['model']['backbone'].update(CHANGES[name])
    if name not in SIZES:
        assert cfg == expected
        # ... in one statement
        text = (FOLDER / f'vcmamba_b_{name}_in1k.py').read_text()
        assert len(ast.parse(text).body) == 2
        return
    size = cfg.pop('size')
    batch = int(name.split('b')[-1])
    crop = [dict(scale=size * 8 // 7), dict(crop_size=size)]
    for pipeline in (expected['test_pipeline'], expected['tta_pipeline']):
        for transform, change in zip(pipeline[1:], crop):
            transform.update(change)
    expected['train_pipeline'][1]['transform']['scale'] = size
    for loader in ('train', 'val', 'test'):
        expected[f'{loader}_dataloader']['batch_size'] = batch
        expected[f'{loader}_dataloader']['dataset']['pipeline'] = expected[
            'train_pipeline' if loader == 'train' else 'test_pipeline'
        ]
    assert cfg == expected
    # no more tokens on a GPU than at 224 pixels, and more than half of them
    assert 1 >= batch * size**2 / (128 * 224**2) > 1 / 2


@pytest.mark.parametrize('name', CHANGES)
def test_parameters(name):
    params = BASE + MORE[name]
    cfg = load(name).model
    size = cfg.backbone.img_size
    with torch.device('meta'):
        model = MODELS.build(cfg).eval()
    total = model_complexity(model, (size, size))['total']
    assert total.params == params
    # ... which is what the documentation says
    cells = f'| {params / 1e6:.3f} M |', f' {total.macs / 1e9:.3f} G |'
    (row,) = (
        line
        for line in (ROOT / 'docs/ablation.md').read_text().splitlines()
        if f'`vcmamba_b_{name}_in1k`' in line
        or f'| `{name.split("_")[0]}` |' in line
    )
    assert all(cell in row for cell in cells)


@pytest.mark.parametrize('name, row', TABLE_4.items())
def test_parameters_of_the_paper(name, row):
    millions, heads = row
    params = BASE + MORE.get(name, 0) + (heads - 1) * SECOND_HEAD
    assert params / 1e6 == pytest.approx(millions, abs=0.1)


def tiny(name):
    """The backbone of a config, with few channels and blocks."""
    cfg = load(name).model.backbone
    num_mdm = 0 if name.startswith('conv-only') else 1
    cfg.arch = dict(embed_dims=(8, 16), depths=(1, 2), num_mdm=num_mdm)
    cfg.drop_path_rate = 0.0
    return cfg


@pytest.mark.parametrize(
    'name', [name for name in CHANGES if name not in SIZES]
)
def test_learns_and_folds(name):
    cfg = tiny(name)
    cfg.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg).double()
    images = torch.randn(2, 3, 48, 64).double()
    (out,) = model(images)
    out.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0 or 'bias' in key, key
    assert not check_folded(model)


def check_folded(model):
    """Compare with the model in float64; return the norms that are left."""
    images = torch.randn(2, 3, 48, 64).double()
    randomize_norms(model).eval()
    with torch.no_grad():
        (expected,) = model(images)
        (folded,) = fold_norms(copy.deepcopy(model))(images)
    torch.testing.assert_close(folded, expected, rtol=1e-10, atol=1e-10)
    model = fuse(model.float())
    with torch.inference_mode():
        (fused,) = model(images.float())
    largest = float(expected.abs().max())
    torch.testing.assert_close(
        fused.double(), expected, rtol=0, atol=1e-5 * largest
    )
    return [m for m in model.modules() if isinstance(m, BatchNorm2d)]


def test_a_norm_before_a_gate_is_not_folded():
    """It stands before two convolutions."""
    model = VCMamba(
        arch=dict(embed_dims=(8, 16), depths=(1, 2), num_mdm=1),
        mixer_cfg=dict(gate=True),
    )
    (block,) = (m for m in model.modules() if isinstance(m, MDMBlock))
    assert check_folded(model.double()) == [block.norm1]


def test_gated_mixer_is_plainmambas():
    """Row 1 has its layers: the same weights give the same tokens."""
    mixer = MultiDirectionalMamba(
        8, proj='linear', gate=True, with_norm=False
    ).double()
    plain = PlainMambaMixer(8).double()
    weights = mixer.state_dict()
    for name, like in plain.state_dict().items():
        parts = [weights.pop(name)]
        if name.startswith('in_proj.'):
            parts.append(weights.pop(name.replace('in_proj', 'gate_proj')))
        like.copy_(torch.cat(parts).view_as(like))
    assert not weights
    u = torch.randn(2, 8, 3, 4).double()
    y = plain(u.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(mixer(u), y)


@pytest.mark.parametrize(
    'proj, act', [('conv', F.relu), ('linear', lambda y: y)]
)
def test_projections(proj, act):
    """A ReLU before the second convolution, none before a linear map."""
    mixer = MultiDirectionalMamba(8, proj=proj).double()
    normed = []
    mixer.norm.register_forward_hook(lambda *args: normed.append(args[-1]))
    out = mixer(torch.randn(2, 8, 3, 4).double())
    y = act(normed[0]) @ mixer.out_proj.weight.flatten(1).T
    if mixer.out_proj.bias is not None:
        y = y + mixer.out_proj.bias
    torch.testing.assert_close(out.flatten(2).mT, y)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(mixer_cfg=dict(proj='bn')), "proj must be one of .*'bn'"),
        (dict(mixer_cfg=dict(num_paths=5)), 'num_paths must be from 1 to 4'),
        (dict(mixer_cfg=dict(num_paths=1.5)), 'num_paths must be from 1 to 4'),
        (dict(mdm_cfg=dict(ffn='mlp')), "ffn must be 'conv'.*'mlp'"),
        (dict(mdm_cfg=dict(mixer_cfg={})), r"mdm_cfg takes .*\['mixer_cfg'\]"),
    ],
)
def test_wrong_option(options, message):
    with pytest.raises(ValueError, match=message):
        VCMamba(arch=dict(embed_dims=(8,), depths=(1,), num_mdm=1), **options)
