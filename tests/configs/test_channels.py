"""Pictures of one channel or four, from training to the tools."""

import numpy as np
import pytest
from conftest import smallest_classifier_cfg
from mmengine.config import Config
from PIL import Image

from vcmamba_mm.analysis.complexity import build_model, model_complexity
from vcmamba_mm.demo.image import paint_pictures

pytest.importorskip('mmpretrain')

READING = {1: 'grayscale', 3: 'color', 4: 'unchanged'}


def config(channels, root):
    """Of a classifier of three classes that are folders of PNG files."""
    model = smallest_classifier_cfg()
    model['backbone']['in_channels'] = channels
    model['data_preprocessor'] = dict(
        mean=channels * [120.0], std=channels * [60.0]
    )
    read = dict(type='LoadImageFromFile', color_type=READING[channels])
    loader = dict(
        batch_size=3,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='CustomDataset',
            data_root=str(root),
            pipeline=[read, dict(type='PackInputs')],
        ),
    )
    return Config(
        dict(
            custom_imports=dict(imports=['vcmamba_mm.classification']),
            default_scope='mmpretrain',
            model=model,
            train_dataloader=loader,
            test_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            test_cfg=dict(),
            test_evaluator=dict(type='Accuracy'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(throughput=dict(type='ThroughputHook')),
            visualizer=dict(type='UniversalVisualizer'),
            experiment_name=f'channels_{channels}',
        )
    )


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Of three classes; in colours, with transparency."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for name in 'abc':
        pixels = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
        (root / name).mkdir()
        Image.fromarray(pixels).save(root / name / 'x.png')
    return root


@pytest.mark.parametrize('channels', [1, 4])
def test_from_training_to_the_tools(channels, pictures, run_here, tmp_path):
    path = tmp_path / 'config.py'
    cfg = config(channels, pictures)
    cfg.dump(path)
    output = run_here('train.py', path, '--work-dir', tmp_path)
    checkpoint = tmp_path / 'epoch_1.pth'
    assert checkpoint.is_file(), output
    cfg.dump(path)
    output = run_here(
        'test.py',
        path,
        checkpoint,
        '--work-dir',
        tmp_path,
        '--show-dir',
        tmp_path / 'painted',
    )
    assert 'accuracy/top1' in output
    names = ['a/x.png', 'b/x.png', 'c/x.png']

    seen, failed = paint_pictures(
        [pictures], path, checkpoint, tmp_path / 'demo', 'cpu'
    )
    assert len(seen) == 3 and not failed
    for folder in ('painted', 'demo'):
        for name in names:
            assert (tmp_path / folder / name).is_file()

    model = ['--model', path, '--checkpoint', checkpoint]
    picture = pictures / 'b/x.png'
    out = tmp_path / 'out.png'
    fields = ['--pictures', pictures, '--size', 64, '--max-pictures', 1]
    for tool, *args in (
        ('analysis/grad_cam.py', picture, *model, '--size', 64),
        ('analysis/scan.py', 'activations', picture, *model, '--size', 64),
        ('analysis/receptive_field.py', path, *fields),
        ('browse_dataset.py', path, '--batches', 1, '--batch-size', 3),
    ):
        output = run_here(tool, *args, '--out', out)
        assert f'written: {out}' in output, output
    # The first picture, in grey or without its transparency, enlarged.
    browsed = np.asarray(Image.open(out))[:192:3, :192:3].astype(int)
    shown = Image.open(pictures / 'a/x.png').convert('RGB')
    if channels == 1:
        shown = shown.convert('L').convert('RGB')
    assert np.abs(browsed - np.asarray(shown)).max() <= 1  # rounding of grey
    output = run_here('get_flops.py', path)
    assert 'total' in output, output
    output = run_here(
        'benchmark.py', path, '--quick', '--size', 64, '--out', tmp_path / 'b'
    )
    assert 'written' in output, output


def test_other_channels_than_the_backbones(pictures, run_here, tmp_path):
    cfg = config(1, pictures)
    del cfg.train_dataloader.dataset.pipeline[0].color_type
    cfg.dump(tmp_path / 'config.py')
    error = run_here('train.py', tmp_path / 'config.py')
    assert error.startswith(
        'error: input of 3 channels, the backbone is made for 1: set '
    )


def test_macs_of_the_first_convolution(pictures):
    """3 x 3 weights to 4 channels, for each quarter of the pixels."""
    macs = {}
    for channels in READING:
        model = build_model(config(channels, pictures))
        macs[channels] = model_complexity(model, (64, 96))['stem'].macs
    each = 9 * 4 * 32 * 48
    assert macs[1] == macs[3] - 2 * each
    assert macs[4] == macs[3] + each
