"""Training and testing with tools/, from start to end."""

import argparse
import re

import mmengine
import pytest
import torch
from conftest import CONFIGS, GOLDEN, run_tool
from PIL import Image
from tiny_options import SMALL_CLS, SMALL_SEG, SMALL_SEG_TEST, data_options

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.training.config import load_config
from vcmamba_mm.training.runner import build_runner

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

CLASSIFIER = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture(scope='module')
def trained(run, pictures, tmp_path_factory):
    """Work dir of a classifier trained by two processes over gloo."""
    work_dir = tmp_path_factory.mktemp('work') / 'classifier'
    process = run(
        'tools/dist_train.sh',
        CLASSIFIER,
        2,
        '--work-dir',
        work_dir,
        '--auto-scale-lr',
        '--cfg-options',
        *data_options(pictures, 'train', 'val'),
        *SMALL_CLS,
        'val_dataloader.dataset.pipeline.1.scale=64',
        'val_dataloader.dataset.pipeline.2.crop_size=64',
        PORT='29611',
    )
    return work_dir, process.stdout + process.stderr


def test_dist_train(trained):
    work_dir, log = trained
    assert 'SyncBN becomes BN' in log and 'over gloo' in log
    # 20 pictures, a third of the repeats for each epoch, 2 processes x 4
    assert re.search(r'Epoch\(train\) \[2\]\[3/3\].*eta.*loss: [\d.]+', log)
    assert 'accuracy/top1: ' in log and 'accuracy/top1_ema: ' in log
    for key in ('grad_norm', 'images_per_second', 'tflops', 'data_time'):
        assert re.search(rf' {key}: [\d.]+', log)
    assert 'Scaling the original LR by 0.0078125' in log  # 2 * 4 / 1024
    line = re.findall(
        r'loss: ([\d.]+)\s+loss_cls: ([\d.]+)\s+'
        r'loss_kd: ([\d.]+)',
        log,
    )[0]
    loss, *parts = map(float, line)
    assert loss == pytest.approx(sum(parts), abs=2e-4)
    saved = read_checkpoint(work_dir / 'epoch_2.pth')
    assert saved['meta']['epoch'] == 2
    # the student alone: the teacher is in neither
    assert len(saved['state_dict']) == len(read_checkpoint(RELEASE)['model'])
    assert len(saved['ema_state_dict']) == len(saved['state_dict']) + 1
    assert set(saved['ema_state_dict']) >= {
        'module.' + key for key in saved['state_dict']
    }


def test_resume(trained, run_here, pictures):
    work_dir, _ = trained
    log = run_here(
        'train.py',
        CLASSIFIER,
        '--work-dir',
        work_dir,
        '--resume',
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=3',
        *data_options(pictures, 'train'),
        *SMALL_CLS,
    )
    assert 'Epoch(train) [3]' in log and 'Epoch(train) [2]' not in log
    assert 'Epoch(val)' not in log
    assert (work_dir / 'epoch_3.pth').is_file()


def test_dist_test_of_a_trained_classifier(trained, run, pictures, tmp_path):
    work_dir, _ = trained
    out = tmp_path / 'predictions.pkl'
    process = run(
        'tools/dist_test.sh',
        CLASSIFIER,
        work_dir / 'epoch_2.pth',
        2,
        '--work-dir',
        tmp_path,
        '--out',
        out,
        '--tta',
        '--cfg-options',
        *data_options(pictures, 'test'),
        'tta_pipeline.1.scale=64',
        'tta_pipeline.2.crop_size=64',
        PORT='29612',
    )
    top1 = float(re.search(r'accuracy/top1: ([\d.]+)', process.stdout)[1])
    predictions = mmengine.load(out)
    assert len(predictions) == 20
    labels = [int(p['pred_label']) for p in predictions]
    assert labels == [int(p['pred_score'].argmax()) for p in predictions]
    right = sum(
        label == int(p['gt_label']) for label, p in zip(labels, predictions)
    )
    assert top1 == pytest.approx(100 * right / 20)


@pytest.mark.parametrize('with_hook', [True, False])
def test_raw_weights_are_tested(trained, pictures, tmp_path, with_hook):
    """Whether or not the config keeps an average."""
    args = argparse.Namespace(
        config=str(CLASSIFIER),
        work_dir=str(tmp_path),
        launcher='none',
        cfg_options={'test_dataloader.dataset.data_root': str(pictures)},
    )
    cfg = load_config(args)
    cfg.load_from = str(trained[0] / 'epoch_2.pth')
    if not with_hook:
        cfg.custom_hooks = []
    cfg.experiment_name = f'raw_{with_hook}'
    runner = build_runner(cfg, 'test')
    runner.call_hook('before_run')
    runner.load_or_resume()
    saved = read_checkpoint(cfg.load_from)
    weight = runner.model.head.fc.weight
    raw = saved['ema_state_dict']['module.head.fc.weight']
    assert torch.equal(weight, raw)
    assert not torch.equal(weight, saved['state_dict']['head.fc.weight'])


@pytest.mark.parametrize(
    'classes, error',
    [
        ('1023456789', "class '1' is number 0 in the test data, in the train"),
        ('abcdefghij', None),  # named otherwise
    ],
)
def test_classes_that_a_checkpoint_is_tested_on(
    classes, error, trained, run_here, pictures, tmp_path
):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(CLASSIFIER)!r}\n'
        f'test_dataloader = dict(dataset=dict(data_root={str(pictures)!r}, '
        f'metainfo=dict(classes={list(classes)})))\n'
    )
    args = [config, trained[0] / 'epoch_2.pth', '--work-dir', tmp_path]
    said = run_here('test.py', *args)
    assert said.startswith('error: ') == bool(error)
    assert (error or 'accuracy/top1: ') in said


def test_test_reads_a_released_file(run_here, pictures, tmp_path):
    out = tmp_path / 'predictions.pkl'
    run_here(
        'test.py',
        CLASSIFIER,
        RELEASE,
        '--work-dir',
        tmp_path,
        '--out',
        out,
        '--show-dir',
        tmp_path / 'show',
        '--cfg-options',
        *data_options(pictures, 'test'),
    )
    assert len(mmengine.load(out)) == 20
    assert len(list((tmp_path / 'show').rglob('*.png'))) == 20


@pytest.fixture(scope='module')
def segmenter(scenes, trained, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work') / 'segmenter'
    checkpoint = trained[0] / 'epoch_2.pth'
    run_tool(
        'train.py',
        SEGMENTER,
        '--work-dir',
        work_dir,
        '--no-validate',
        '--cfg-options',
        f'model.backbone.init_cfg.checkpoint={checkpoint}',
        *SMALL_SEG,
        *data_options(scenes, 'train', 'val'),
    )
    (log,) = work_dir.glob('*/*.log')
    log = log.read_text()
    assert re.search(r'VCMamba: all \d+ keys loaded', log)
    assert 'Iter(train) [2/2]' in log
    return work_dir / 'iter_2.pth'


@pytest.mark.parametrize(
    'options', [['model.test_cfg.mode=whole'], ['model.test_cfg.mode=slide']]
)
def test_segmenter_whole_and_sliding(
    segmenter, run_here, scenes, tmp_path, options
):
    log = run_here(
        'test.py',
        SEGMENTER,
        segmenter,
        '--work-dir',
        tmp_path,
        '--show-dir',
        tmp_path / 'show',
        '--out',
        tmp_path / 'maps',
        '--cfg-options',
        *data_options(scenes, 'test'),
        *SMALL_SEG_TEST,
        *options,
    )
    assert '|         wall        |' in log
    assert re.search(r'mIoU: [\d.]+', log)
    painted = list((tmp_path / 'show').rglob('*.png'))
    assert len(painted) == 2
    with Image.open(painted[0]) as image:
        assert image.size == (2 * 563, 360)  # truth beside prediction
    with Image.open(tmp_path / 'maps/0.png') as image:
        assert image.size == (150, 96)


def test_segmenter_tta(segmenter, run_here, scenes, tmp_path):
    scale = 'tta_pipeline.1.transforms.0.{}.scale=(999,{})'
    log = run_here(
        'test.py',
        SEGMENTER,
        segmenter,
        '--work-dir',
        tmp_path,
        '--tta',
        '--cfg-options',
        *data_options(scenes, 'test'),
        *(scale.format(i, 16 * i + 32) for i in range(6)),
    )
    assert re.search(r'mIoU: [\d.]+', log)


# ------------------------------------------------ the real configs, real data


def test_imagenet_config_on_real_pictures(run_here, shared_data, tmp_path):
    config = 'configs/vcmamba_s_8xb128_in1k.py'
    root = shared_data / 'imagenet_sample'
    fast = [
        f'{loop}_dataloader.{key}'
        for loop in ('train', 'val', 'test')
        for key in (
            'num_workers=0',
            'persistent_workers=False',
            'batch_size=10',
        )
    ]
    log = run_here(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
        *fast,
        *SMALL_CLS,
        *data_options(root, 'train', 'val'),
    )
    assert re.search(r'Epoch\(train\) \[1\]\[2/2\].*loss: [\d.]+', log)
    log = run_here(
        'test.py',
        config,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *fast,
        *data_options(root, 'test'),
        'test_dataloader.dataset.pipeline.1.scale=64',
        'test_dataloader.dataset.pipeline.2.crop_size=64',
    )
    assert re.search(r'accuracy/top1: [\d.]+.*accuracy/top5: [\d.]+', log)


def test_ade20k_config_on_real_pictures(run_here, shared_data, tmp_path):
    config = 'configs/vcmamba_s_fpn_8xb4_40k_ade20k_512x512.py'
    root = shared_data / 'ade_sample/ADEChallengeData2016'
    fast = [
        f'{loop}_dataloader.{key}'
        for loop in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    log = run_here(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        '--no-validate',
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'train_cfg.max_iters=1',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=2',
        'model.data_preprocessor.size=(64,64)',
        *fast,
        *SMALL_SEG,
        *data_options(root, 'train', 'val'),
    )
    assert re.search(r'Iter\(train\) \[1/1\].*decode.loss_ce: [\d.]+', log)
    log = run_here(
        'test.py',
        config,
        tmp_path / 'iter_1.pth',
        '--work-dir',
        tmp_path,
        '--show-dir',
        tmp_path / 'show',
        '--cfg-options',
        *fast,
        *data_options(root, 'test'),
        *SMALL_SEG_TEST,
    )
    assert re.search(r'mIoU: [\d.]+', log)
    assert len(list((tmp_path / 'show').rglob('*.png'))) == 3
