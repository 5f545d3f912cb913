"""A segmenter with one output for two classes, as mmseg recommends it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.structures import PixelData
from PIL import Image

from vcmamba_mm import AverageSegScoreTTA
from vcmamba_mm.demo.__main__ import main
from vcmamba_mm.inference import get_model

pytest.importorskip('mmseg')

from mmseg.models import SegTTAModel
from mmseg.structures import SegDataSample

CONFIG = f"""
_base_ = {str(ROOT / 'configs/vcmamba_s_fpn_finetune_b8_4k_masks.py')!r}
arch = dict(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 2), num_mdm=1)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch=dict(_delete_=True, **arch), init_cfg=None),
    neck=dict(in_channels=[8, 16, 16, 32], out_channels=16),
    decode_head=dict(
        in_channels=[16] * 4,
        channels=16,
        out_channels=1,
        loss_decode=dict(use_sigmoid=True),
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageStrict'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
loader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(data_root={{root!r}}, pipeline=test_pipeline),
)
train_dataloader = dict(
    loader, batch_size=2, sampler=dict(_delete_=True, type='InfiniteSampler')
)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_iters=3, val_interval=3)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=3))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Noise with a bright object on it, which is 1 in the mask."""
    root = tmp_path_factory.mktemp('masks')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for i in range(2):
            mask = np.zeros((64, 64), np.uint8)
            mask[20:50, 10:40] = 1
            pixels = rng.integers(0, 100, (64, 64, 3), dtype=np.uint8)
            pixels[mask == 1] += 120
            Image.fromarray(pixels).save(root / f'images/{split}/{i}.jpg')
            Image.fromarray(mask).save(root / f'annotations/{split}/{i}.png')
    return root


def probabilities(config, checkpoint, picture):
    """Of the object, as the formula of the head says."""
    model = get_model(config, checkpoint, 'cpu')
    pixels = np.array(Image.open(picture), np.float32)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    x = torch.from_numpy(((pixels - mean) / std).astype(np.float32))
    with torch.no_grad():
        logits = model(x.permute(2, 0, 1)[None], mode='tensor')
        logits = torch.nn.functional.interpolate(
            logits, size=(64, 64), mode='bilinear', align_corners=False
        )
    return logits.sigmoid()[0, 0]


def test_training_and_testing(run_here, root, tmp_path, capfd):
    config = tmp_path / 'binary.py'
    config.write_text(CONFIG.format(root=str(root)))
    work_dir = tmp_path / 'work'
    options = ['--work-dir', work_dir, '--cfg-options']
    printed = run_here('train.py', config, *options)
    assert 'mIoU' in printed
    checkpoint = work_dir / 'iter_3.pth'
    # What tells the pixels of the first picture apart.
    picture = root / 'images/val/0.jpg'
    threshold = probabilities(config, checkpoint, picture).median().item()
    options.append(f'model.decode_head.threshold={threshold}')
    for i, extra in enumerate(([], ['--tta'])):
        out = tmp_path / f'out{i}'
        arguments = [config, checkpoint, *extra, '--out', out]
        run_here('test.py', *arguments, *options)
        for name in ('0', '1'):
            picture = root / f'images/val/{name}.jpg'
            expected = probabilities(config, checkpoint, picture)
            if extra:
                with Image.open(picture) as image:
                    flipped = image.transpose(Image.FLIP_LEFT_RIGHT)
                    flipped.save(tmp_path / 'flipped.png')
                mirrored = probabilities(
                    config, checkpoint, tmp_path / 'flipped.png'
                )
                expected = (expected + mirrored.flip(1)) / 2
            sure = (expected - threshold).abs() > 1e-5
            with Image.open(out / f'{name}.png') as image:
                mask = torch.from_numpy(np.array(image))
            assert sure.float().mean() > 0.9
            assert mask.unique().tolist() == [0, 1]
            assert torch.equal(mask[sure] == 1, expected[sure] > threshold)

    argument = ['image', str(picture), '--model', str(config)]
    argument += ['--checkpoint', str(checkpoint), '--out', str(tmp_path)]
    assert not main(argument)
    assert 'object' in capfd.readouterr().out


def test_average_of_more_classes_is_mmseg_s():
    module = SimpleNamespace(out_channels=5)
    samples = [
        SegDataSample(
            seg_logits=PixelData(data=torch.randn(5, 6, 7)),
            metainfo=dict(img_path='x'),
        )
        for _ in range(4)
    ]
    merged = [
        kind.merge_preds(SimpleNamespace(module=module), [samples])[0]
        for kind in (AverageSegScoreTTA, SegTTAModel)
    ]
    ours, theirs = (sample.pred_sem_seg.data for sample in merged)
    assert torch.equal(ours, theirs) and len(ours.unique()) == 5
