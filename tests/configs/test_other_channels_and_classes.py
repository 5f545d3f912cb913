"""Checkpoints that fit but for the input's channels, or the classes."""

import pytest
import torch
from conftest import CONFIGS, GOLDEN, TINY, tiny_classifier_cfg
from mmengine.registry import MODELS, init_default_scope

from vcmamba_mm import NormGlobalAveragePooling, VCMamba
from vcmamba_mm.checkpoints import CheckpointError, check_fit

RELEASE = GOLDEN / 'tiny_release.pth'
CLASSIFIER = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'


def backbone(in_channels, **options):
    init_cfg = dict(type='Pretrained', checkpoint=str(RELEASE), **options)
    model = VCMamba(
        arch=TINY, img_size=160, in_channels=in_channels, init_cfg=init_cfg
    )
    model.init_weights()
    return model.double().eval()


@pytest.fixture(scope='module')
def weight():
    """Of the first convolution, (8, 3, 3, 3)."""
    content = torch.load(RELEASE, weights_only=False)
    return content['model']['patch_embed.0.weight'].double()


def test_one_channel_gives_what_the_same_grey_in_three_gave(weight):
    grey = torch.randn(2, 1, 64, 96, dtype=torch.float64)
    one = backbone(1, adapt_in_channels=True)
    with torch.no_grad():
        (expected,) = backbone(3)(grey.expand(-1, 3, -1, -1))
        (found,) = one(grey)
    # The weights are summed in float32.
    close = dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, expected, **close)
    by_hand = weight[:, :1] + weight[:, 1:2] + weight[:, 2:]
    torch.testing.assert_close(one.stem[0].weight, by_hand, **close)


@pytest.mark.parametrize(
    'in_channels, order',
    [(2, [0, 1]), (4, [0, 1, 2, 0]), (7, [0, 1, 2, 0, 1, 2, 0])],
)
def test_more_channels_repeat(weight, in_channels, order):
    model = backbone(in_channels, adapt_in_channels=True)
    assert model.stem[0].weight.shape[1] == in_channels
    for channel, source in enumerate(order):
        torch.testing.assert_close(
            model.stem[0].weight[:, channel],
            weight[:, source] * (3 / in_channels),
        )


def test_a_number_of_channels_that_fits_is_left_alone(weight):
    model = backbone(3, adapt_in_channels=True)
    assert torch.equal(model.stem[0].weight, weight)


def test_grey_pictures_through_their_preprocessors():
    """With one mean and std for all channels, as docs/finetuning.md says."""
    pytest.importorskip('mmpretrain')
    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    grey = torch.randint(0, 256, (2, 1, 96, 64), dtype=torch.uint8)
    scores = []
    for channels in (3, 1):
        cfg = tiny_classifier_cfg(
            data_preprocessor=dict(
                mean=[120.0] * channels, std=[50.0] * channels, to_rgb=True
            )
        )
        for part, options in (
            ('backbone', dict(in_channels=channels)),
            ('neck', {}),
        ):
            init_cfg = dict(type='Pretrained', checkpoint=str(RELEASE))
            if channels == 1:
                init_cfg['adapt_in_channels'] = True
            cfg[part] = dict(cfg[part], init_cfg=init_cfg, **options)
        torch.manual_seed(0)
        model = MODELS.build(cfg).eval()
        model.init_weights()
        torch.manual_seed(0)
        torch.nn.init.normal_(model.head.fc.weight)
        pictures = grey.expand(-1, channels, -1, -1)
        inputs = model.data_preprocessor(dict(inputs=pictures))['inputs']
        assert inputs.shape[1] == channels
        with torch.no_grad():
            feats = model.extract_feat(inputs)
            scores.append(model.head.fc(feats[-1]))
    torch.testing.assert_close(*scores)


def test_mismatch_names_the_option():
    for in_channels in (1, 4):
        with pytest.raises(CheckpointError) as error:
            backbone(in_channels)
        assert f'(8, 3, 3, 3) for (8, {in_channels}, 3, 3)' in str(error.value)
        assert 'adapt_in_channels=True in init_cfg' in str(error.value)
    # of the whole model, too, but not where the kernels differ alone
    model = torch.nn.ModuleDict(dict(backbone=VCMamba(TINY, in_channels=1)))
    weights = model.state_dict()
    key = 'backbone.stem.0.weight'
    for shape, named in (((8, 3, 3, 3), True), ((8, 1, 5, 5), False)):
        with pytest.raises(CheckpointError) as error:
            check_fit(model, {**weights, key: torch.ones(shape)}, 'FILE')
        assert ('adapt_in_channels' in str(error.value)) == named


def test_unknown_options_of_init_cfg():
    with pytest.raises(ValueError, match='adapt_in_channels; got adapt_chan$'):
        backbone(1, adapt_chan=True)
    with pytest.raises(ValueError, match="weights must be .* got 'average'"):
        backbone(3, weights='average')
    backbone(3, map_location='cpu')  # which MMEngine takes
    neck = NormGlobalAveragePooling(
        64, init_cfg=dict(type='Pretrained', checkpoint=str(RELEASE), key=1)
    )
    with pytest.raises(ValueError, match='got key'):
        neck.init_weights()


# -------------------------------------------------------------- other classes


def test_load_from_with_other_classes_names_init_cfg(
    run_here, pictures, tmp_path
):
    """What it says then works."""
    pytest.importorskip('mmpretrain')
    use = [
        *(CLASSIFIER, '--work-dir', tmp_path, '--cfg-options'),
        f'train_dataloader.dataset.data_root={pictures}',
        f'val_dataloader.dataset.data_root={pictures}',
    ]
    from vcmamba_mm.checkpoints import extract_state_dict, read_checkpoint

    content = extract_state_dict(read_checkpoint(RELEASE), RELEASE)
    for key in content:
        if key.startswith('head'):
            content[key] = torch.cat([content[key]] * 2)  # 20 classes
    path = tmp_path / 'twenty.pth'
    torch.save(dict(state_dict=content), path)
    line = run_here('train.py', *use, f'load_from={path}')
    assert 'head.fc.weight (20, 64) for (10, 64)' in line
    for part in ('backbone', 'neck'):
        setting = (
            f"model.{part}.init_cfg=dict(type='Pretrained', prefix='{part}', "
            f"checkpoint='{path}')"
        )
        assert setting in line
    text = run_here(
        'train.py',
        *use,
        'train_cfg.max_epochs=0',
        *(
            f'model.{part}.init_cfg.{key}={value}'
            for part in ('backbone', 'neck')
            for key, value in (
                ('type', 'Pretrained'),
                ('prefix', part),
                ('checkpoint', path),
            )
        ),
    )
    assert 'VCMamba: all' in text
    assert 'NormGlobalAveragePooling: all' in text


def test_a_test_with_other_classes_does_not():
    model = VCMamba(TINY)
    with pytest.raises(CheckpointError) as error:
        check_fit(model, {'stem.0.weight': torch.ones(1)}, 'FILE')
    assert 'init_cfg' not in str(error.value)
