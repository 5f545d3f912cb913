"""The tools of mmpretrain and mmsegmentation on configs of this project.

They know nothing of it but what ``custom_imports`` imports, and train with
MMEngine's own runner.
"""

import importlib.util
import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT
from mmengine.visualization import Visualizer
from PIL import Image

from vcmamba_mm.checkpoints import read_checkpoint

pytestmark = pytest.mark.peers
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

CLASSIFIER = """
_base_ = {base!r}
model = dict(head=dict(topk=(1,)))
loader = dict(dataset=dict(data_root={root!r}))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
"""
SEGMENTER = """
_base_ = {base!r}
classes = ('wall', 'building', 'sky', 'floor')
model = dict(
    backbone=dict(init_cfg=None), decode_head=dict(num_classes=len(classes))
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (160, 96)
train_pipeline[3].crop_size = (64, 64)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (160, 96)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(160, 96))]
dataset = dict(data_root={root!r}, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(visualization=dict(draw=True, interval=1))
randomness = dict(seed=0)
"""


def run(script, *args):
    """Run a program in this process as if it was the first one in it."""
    kinds = [Visualizer]
    while kinds:  # each class has the visualizers of its own
        kind = kinds.pop()
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()
    before = sys.argv
    sys.argv = [str(script), *map(str, args)]
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv = before


def stock(package, script, *args):
    package = Path(importlib.util.find_spec(package).origin).parent
    run(package / '.mim/tools' / script, *args)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Noise and masks in ADE20K's layout, two of each."""
    root = tmp_path_factory.mktemp('ade')
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for folder, ending, shape in (
            ('images', 'jpg', (96, 150, 3)),
            ('annotations', 'png', (96, 150)),
        ):
            path = root / folder / split
            path.mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 4, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(path / f'{i}.{ending}')
    return root


@pytest.fixture(autouse=True)
def _headless(monkeypatch, tmp_path):
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def classifier(pictures, tmp_path_factory):
    """A config and the work dir of its training."""
    folder = tmp_path_factory.mktemp('classifier')
    config = folder / 'cls.py'
    base = str(CONFIGS / 'tiny_plain.py')
    config.write_text(CLASSIFIER.format(base=base, root=str(pictures)))
    stock('mmpretrain', 'train.py', config, '--work-dir', folder / 'work')
    checkpoint = folder / 'work/epoch_1.pth'
    predictions = folder / 'predictions.pkl'
    arguments = [config, checkpoint, '--work-dir', folder / 'work']
    arguments += ['--out', predictions, '--out-item', 'pred']
    stock('mmpretrain', 'test.py', *arguments)
    return dict(
        config=config,
        work=folder / 'work',
        checkpoint=checkpoint,
        predictions=predictions,
        picture=pictures / 'val/0/0_0.jpg',
    )


@pytest.fixture(scope='module')
def segmenter(scenes, tmp_path_factory):
    """A config and the work dir of its training."""
    folder = tmp_path_factory.mktemp('segmenter')
    config = folder / 'seg.py'
    base = str(CONFIGS / 'tiny_segmenter.py')
    config.write_text(SEGMENTER.format(base=base, root=str(scenes)))
    stock('mmseg', 'train.py', config, '--work-dir', folder / 'work')
    checkpoint = folder / 'work/iter_2.pth'
    out = folder / 'out'
    arguments = ['--work-dir', folder / 'work', '--out', out]
    stock('mmseg', 'test.py', config, checkpoint, *arguments)
    return dict(
        config=config,
        work=folder / 'work',
        checkpoint=checkpoint,
        predictions=out,
        picture=scenes / 'images/validation/0.jpg',
    )


def test_training_and_testing_a_classifier(classifier, tmp_path):
    """Weights and predictions are those of our own tools."""
    config, theirs = classifier['config'], classifier['checkpoint']
    arguments = ['--work-dir', tmp_path]
    run(ROOT / 'tools/train.py', config, *arguments)
    weights = [
        read_checkpoint(path)['state_dict']
        for path in (theirs, tmp_path / 'epoch_1.pth')
    ]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, msg=key)
    out = tmp_path / 'ours.pkl'
    run(ROOT / 'tools/test.py', config, theirs, '--out', out, *arguments)
    ours, stocks = map(mmengine.load, (out, classifier['predictions']))
    assert len(ours) == len(stocks) == 20
    for mine, other in zip(ours, stocks):
        torch.testing.assert_close(mine['pred_score'], other['pred_score'])


def test_training_and_testing_a_segmenter(segmenter, tmp_path):
    config, checkpoint = segmenter['config'], segmenter['checkpoint']
    arguments = ['--work-dir', tmp_path, '--out', tmp_path / 'ours']
    run(ROOT / 'tools/test.py', config, checkpoint, *arguments)
    for name in ('0.png', '1.png'):
        with (
            Image.open(tmp_path / 'ours' / name) as ours,
            Image.open(segmenter['predictions'] / name) as theirs,
        ):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    'config',
    [
        'demo/vcmamba_demo_digits.py',
        'demo/vcmamba_demo_fpn_digits.py',
        'camvid/vcmamba_tiny_cifar10.py',
        'camvid/vcmamba_tiny_fpn_camvid.py',
    ],
)
def test_what_stock_train_sets_fits_the_config(config):
    """It has workers persist where a config does not say."""
    cfg = mmengine.Config.fromfile(ROOT / 'configs' / config)
    for loop in ('train', 'val', 'test'):
        loader = dict(cfg[f'{loop}_dataloader'])
        persistent = loader.get('persistent_workers', True)
        assert loader['num_workers'] or not persistent


MATPLOTLIB = pytest.mark.xfail(
    reason='calls what Matplotlib has changed since: use ours'
)
UNPICKLE = pytest.mark.xfail(
    torch.__version__ >= '2.6',
    reason='reads checkpoints of MMEngine as PyTorch from 2.6 on refuses',
)
TOOLS = [
    ('mmpretrain', 'test.py', '{config} {checkpoint} --tta', ''),
    ('mmpretrain', 'test.py', '{config} {checkpoint} --show-dir show', ''),
    ('mmpretrain', 'analysis_tools/get_flops.py', '{config} --shape 64', ''),
    (
        'mmpretrain',
        'visualization/vis_cam.py',
        '{picture} {config} {checkpoint} --save-path x.png',
        'x.png',
    ),
    (
        'mmpretrain',
        'visualization/vis_cam.py',
        '{picture} {config} {checkpoint} --save-path x.png '
        '--target-layers backbone.stages.3 backbone.stages.2.blocks.0',
        'x.png',
    ),
    (
        'mmpretrain',
        'visualization/vis_scheduler.py',
        '{config} --not-show --save-path x.png',
        'x.png',
    ),
    pytest.param(
        'mmpretrain',
        'visualization/browse_dataset.py',
        '{config} -o browse -n 2 --not-show',
        'browse',
        marks=MATPLOTLIB,
    ),
    (
        'mmpretrain',
        'visualization/vis_tsne.py',
        '{config} --checkpoint {checkpoint} --perplexity 3 --n-iter 250',
        'work_dirs',
    ),
    (
        'mmpretrain',
        'analysis_tools/confusion_matrix.py',
        '{config} {checkpoint} --show-path x.png',
        'x.png',
    ),
    (
        'mmpretrain',
        'analysis_tools/confusion_matrix.py',
        '{config} {predictions} --show-path x.png',
        'x.png',
    ),
    (
        'mmpretrain',
        'analysis_tools/eval_metric.py',
        '{predictions} --metric type=Accuracy topk=1,',
        '',
    ),
    (
        'mmpretrain',
        'analysis_tools/analyze_results.py',
        '{config} {predictions} --out-dir x',
        'x',
    ),
    (
        'mmpretrain',
        'analysis_tools/analyze_logs.py',
        'plot_curve {log} --keys loss --out x.png',
        'x.png',
    ),
    (
        'mmpretrain',
        'analysis_tools/analyze_logs.py',
        'cal_train_time {log}',
        '',
    ),
    ('mmpretrain', 'misc/print_config.py', '{config}', ''),
    (
        'mmpretrain',
        'kfold-cross-valid.py',
        '{config} --num-splits 2 --fold 0 --work-dir x',
        'x/fold0/epoch_1.pth',
    ),
    pytest.param(
        'mmpretrain',
        'model_converters/publish_model.py',
        '{checkpoint} x.pth',
        '',
        marks=UNPICKLE,
    ),
    ('mmseg', 'test.py', '{config} {checkpoint} --show-dir show', ''),
    ('mmseg', 'test.py', '{config} {checkpoint} --tta', ''),
    ('mmseg', 'analysis_tools/get_flops.py', '{config} --shape 64 64', ''),
    (
        'mmseg',
        'analysis_tools/benchmark.py',
        '{config} {checkpoint} --repeat-times 1',
        '',
    ),
    (
        'mmseg',
        'analysis_tools/browse_dataset.py',
        '{config} --output-dir x --not-show',
        'x',
    ),
    pytest.param(
        'mmseg',
        'analysis_tools/analyze_logs.py',
        '{log} --keys mIoU --out x.png',
        'x.png',
        marks=pytest.mark.skipif(
            importlib.util.find_spec('seaborn') is None, reason='needs seaborn'
        ),
    ),
    ('mmseg', 'misc/print_config.py', '{config}', ''),
    pytest.param(
        'mmseg',
        'misc/publish_model.py',
        '{checkpoint} x.pth',
        '',
        marks=UNPICKLE,
    ),
]


# Faults of the packages as OpenMMLab froze them, with what came after.
FROZEN = {
    'visualization/vis_cam.py': 'calls an older grad-cam, with use_cuda',
    'visualization/vis_tsne.py': 'calls an older scikit-learn, with n_iter',
    'mmseg/analysis_tools/get_flops.py': 'gives MMEngine shape and inputs',
    'mmseg/analysis_tools/browse_dataset.py': 'paints on what OpenCV 4 cannot',
}


@pytest.mark.parametrize('package, script, arguments, made', TOOLS)
def test_tool(request, package, script, arguments, made):
    fault = FROZEN.get(script) or FROZEN.get(f'{package}/{script}')
    if fault and 'mmengine' in packages_distributions()['mmengine']:
        request.node.add_marker(pytest.mark.xfail(reason=fault))
    trained = request.getfixturevalue(
        'classifier' if package == 'mmpretrain' else 'segmenter'
    )
    logs = trained['work'].glob('*/vis_data/scalars.json')
    log = next(path for path in logs if '"loss"' in path.read_text())
    words = arguments.format(**trained, log=log).split()
    try:
        stock(package, script, *words)
    except SystemExit as stop:
        assert not stop.code
    assert not made or Path(made).exists()
