"""The command-line tools, by running them."""

import argparse
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from conftest import CONFIGS, GOLDEN, ROOT
from mmengine.runner import EpochBasedTrainLoop
from PIL import Image

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.training.config import load_config
from vcmamba_mm.training.runner import build_runner

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

CLASSIFIER = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """Noise with label maps in ADE20K's layout, two pictures."""
    root = tmp_path_factory.mktemp('ade')
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(
                rng.integers(0, 256, (96, 150, 3), dtype=np.uint8)
            ).save(root / f'images/{split}/{i}.jpg')
            Image.fromarray(
                rng.integers(0, 4, (96, 150), dtype=np.uint8)
            ).save(root / f'annotations/{split}/{i}.png')
    return root


def data_options(root, *loops):
    return [f'{loop}_dataloader.dataset.data_root={root}' for loop in loops]


SMALL_CLS = ['train_dataloader.dataset.pipeline.1.transform.scale=64']
SMALL_SEG = [
    'train_dataloader.dataset.pipeline.2.scale=(160,96)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
]
SMALL_SEG_TEST = ['test_dataloader.dataset.pipeline.1.scale=(160,96)']


@pytest.fixture(scope='session')
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


def test_resume(trained, run, pictures):
    work_dir, _ = trained
    log = run(
        'tools/train.py',
        CLASSIFIER,
        '--work-dir',
        work_dir,
        '--resume',
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=3',
        *data_options(pictures, 'train'),
        *SMALL_CLS,
    ).stdout
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


def test_test_reads_a_released_file(run, pictures, tmp_path):
    out = tmp_path / 'predictions.pkl'
    run(
        'tools/test.py',
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


@pytest.fixture(scope='session')
def segmenter(run, scenes, trained, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work') / 'segmenter'
    checkpoint = trained[0] / 'epoch_2.pth'
    process = run(
        'tools/train.py',
        SEGMENTER,
        '--work-dir',
        work_dir,
        '--no-validate',
        '--cfg-options',
        f'model.backbone.init_cfg.checkpoint={checkpoint}',
        *SMALL_SEG,
        *data_options(scenes, 'train', 'val'),
    )
    assert re.search(r'VCMamba: all \d+ keys loaded', process.stdout)
    assert 'Iter(train) [2/2]' in process.stdout
    return work_dir / 'iter_2.pth'


@pytest.mark.parametrize(
    'options', [['model.test_cfg.mode=whole'], ['model.test_cfg.mode=slide']]
)
def test_segmenter_whole_and_sliding(
    segmenter, run, scenes, tmp_path, options
):
    log = run(
        'tools/test.py',
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
    ).stdout
    assert '|         wall        |' in log
    assert re.search(r'mIoU: [\d.]+', log)
    painted = list((tmp_path / 'show').rglob('*.png'))
    assert len(painted) == 2
    with Image.open(painted[0]) as image:
        assert image.size == (2 * 563, 360)  # truth beside prediction
    with Image.open(tmp_path / 'maps/0.png') as image:
        assert image.size == (150, 96)


def test_segmenter_tta(segmenter, run, scenes, tmp_path):
    log = run(
        'tools/test.py',
        SEGMENTER,
        segmenter,
        '--work-dir',
        tmp_path,
        '--tta',
        '--cfg-options',
        *data_options(scenes, 'test'),
    ).stdout
    assert re.search(r'mIoU: [\d.]+', log)


# ------------------------------------------------ the real configs, real data


def test_imagenet_config_on_real_pictures(run, shared_data, tmp_path):
    """configs/vcmamba_s_8xb128_in1k.py, two processes, then testing."""
    config = 'configs/vcmamba_s_8xb128_in1k.py'
    root = shared_data / 'imagenet_sample'
    fast = [
        f'{loop}_dataloader.{key}'
        for loop in ('train', 'val', 'test')
        for key in (
            'num_workers=0',
            'persistent_workers=False',
            'batch_size=5',
        )
    ]
    log = run(
        'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path,
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
        *fast,
        *SMALL_CLS,
        *data_options(root, 'train', 'val'),
        PORT='29613',
    ).stdout
    assert re.search(r'Epoch\(train\) \[1\]\[2/2\].*loss: [\d.]+', log)
    log = run(
        'tools/test.py',
        config,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *fast,
        *data_options(root, 'test'),
        'test_dataloader.dataset.pipeline.1.scale=64',
        'test_dataloader.dataset.pipeline.2.crop_size=64',
    ).stdout
    assert re.search(r'accuracy/top1: [\d.]+.*accuracy/top5: [\d.]+', log)


def test_ade20k_config_on_real_pictures(run, shared_data, tmp_path):
    config = 'configs/vcmamba_s_fpn_8xb4_40k_ade20k_512x512.py'
    root = shared_data / 'ade_sample/ADEChallengeData2016'
    fast = [
        f'{loop}_dataloader.{key}'
        for loop in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    log = run(
        'tools/train.py',
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
    ).stdout
    assert re.search(r'Iter\(train\) \[1/1\].*decode.loss_ce: [\d.]+', log)
    log = run(
        'tools/test.py',
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
    ).stdout
    assert re.search(r'mIoU: [\d.]+', log)
    assert len(list((tmp_path / 'show').rglob('*.png'))) == 3


# ---------------------------------------------------------- the smaller tools


def test_convert_there_and_back(run, tmp_path):
    ours, back = tmp_path / 'ours.pth', tmp_path / 'back.pth'
    assert (
        'keys written'
        in run('tools/convert_checkpoint.py', RELEASE, ours).stdout
    )
    run('tools/convert_checkpoint.py', ours, back, '--reverse')
    released = read_checkpoint(RELEASE)['model']
    converted = read_checkpoint(back)['model']
    assert list(converted) == list(released)
    assert all(torch.equal(converted[k], v) for k, v in released.items())
    run('tools/convert_checkpoint.py', RELEASE, ours, '--weights', 'ema')
    weight = read_checkpoint(ours)['state_dict']['head.fc.weight']
    torch.testing.assert_close(weight, released['head.weight'] + 0.01)


def test_get_flops(run):
    name = 'vcmamba_s_8xb128_in1k'
    out = run('tools/get_flops.py', f'configs/{name}.py').stdout
    rows = {
        line[:9].strip(): list(map(float, re.findall(r'\d+\.?\d*', line[9:])))
        for line in out.splitlines()
    }
    assert rows[''] == [224, 224]
    params, macs = rows['total']
    assert params == 10.190
    # The paper's figure, 1.08 G, counts the scan differently.
    assert macs == pytest.approx(1.08, rel=0.01)
    # 4 layers x 4 paths x 49 tokens x 576 channels x (4 * 16 + 2)
    scan = 4 * 4 * 49 * 576 * 66 / 1e9
    assert rows['scan'] == pytest.approx([scan], abs=5e-4)
    shapes = ['--shape', 64, 96, '--shape', 448]
    out = run('tools/get_flops.py', name, *shapes).stdout
    assert '64 x 96      448 x 448' in out
    larger = float(re.search(r'total.* ([\d.]+) GMAC', out)[1])
    assert larger == pytest.approx(4 * macs, rel=1e-3)


@pytest.fixture
def slurm(tmp_path):
    """Programs that do for one machine what slurm's do for two."""
    folder = tmp_path / 'slurm'
    folder.mkdir()
    (folder / 'srun').write_text(
        """#!/usr/bin/env bash
        while [[ $1 == --* ]]; do
            echo "srun option $1"
            shift
        done
        export SLURM_JOB_ID=$$ SLURM_STEP_NODELIST='node[1-2]'
        SLURM_NODEID=1 "$@" &
        SLURM_NODEID=0 "$@"
        wait -n
        """
    )
    (folder / 'scontrol').write_text(
        """#!/usr/bin/env bash
        [[ $* == 'show hostnames node[1-2]' ]] && echo 127.0.0.1 && echo node2
        """
    )
    for program in folder.iterdir():
        program.chmod(0o755)
    python = Path(sys.executable).parent
    return dict(
        PATH=f'{folder}:{python}:{os.environ["PATH"]}',
        GPUS='2',
        GPUS_PER_NODE='1',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--qos=high --time=1:00',
    )


def test_slurm(run, slurm, pictures, tmp_path):
    config = CONFIGS / 'tiny_plain.py'
    work_dir = tmp_path / 'a b'
    log = run(
        'tools/slurm_train.sh',
        'partition',
        'job',
        config,
        '--work-dir',
        work_dir,
        '--no-validate',
        '--cfg-options',
        *data_options(pictures, 'train'),
        **slurm,
    ).stdout
    options = re.findall('srun option (.*)', log)
    assert options == [
        '--partition=partition',
        '--job-name=job',
        '--gres=gpu:1',
        '--nodes=2',
        '--ntasks-per-node=1',
        '--cpus-per-task=3',
        '--kill-on-bad-exit=1',
        '--qos=high',
        '--time=1:00',
    ]
    assert 'Epoch(train) [1][5/5]' in log  # 10 for one process
    log = run(
        'tools/slurm_test.sh',
        'partition',
        'job',
        config,
        work_dir / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'test',
        '--cfg-options',
        *data_options(pictures, 'test'),
        **slurm,
    ).stdout
    assert re.search(r'Epoch\(test\) \[5/5\].*accuracy/top1', log)


def test_slurm_wants_whole_machines(run):
    process = run(
        'tools/slurm_train.sh',
        *('partition', 'job', 'config.py'),
        check=False,
        GPUS='12',
    )
    assert process.returncode == 2
    assert 'GPUS (12) must be a multiple of' in process.stderr


# ------------------------------------------------------------------ bad input


@pytest.fixture
def tool(monkeypatch, capfd, tmp_path):
    """Run a tool in this process; return its exit code and last error."""

    def tool(script, *args):
        monkeypatch.chdir(ROOT)
        argv = [script, *map(str, args)]
        if script in ('train.py', 'test.py'):
            argv += ['--work-dir', str(tmp_path / 'work')]
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(f'tools/{script}', run_name='__main__')
        errors = [
            line
            for line in capfd.readouterr().err.splitlines()
            if line.startswith('error: ')
        ]
        assert len(errors) == 1
        return stop.value.code, errors[0]

    return tool


def with_arch(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{CLASSIFIER}'\nmodel = dict({text})\n")
    return path


@pytest.mark.parametrize(
    'text, message',
    [
        (
            "backbone=dict(_delete_=True, type='VCMamba', arch='x')",
            "unknown arch 'x': choose one of",
        ),
        (
            'backbone=dict(out_indices=(0, 9))',
            'out_indices must be from -4 to 3',
        ),
        (
            "backbone=dict(mixer_cfg=dict(backend='cuda'))",
            "unknown scan backend 'cuda'",
        ),
        ('backbone=dict(widht=3)', "unexpected keyword argument 'widht'"),
        ("backbone=dict(type='VCMumba')", 'VCMumba is not in the'),
    ],
)
def test_wrong_config(tool, pictures, tmp_path, text, message):
    code, error = tool(
        'train.py',
        with_arch(tmp_path, text),
        '--cfg-options',
        *data_options(pictures, 'train', 'val'),
    )
    assert code == 2 and message in error


@pytest.mark.parametrize(
    'text, message',
    [
        (
            # 2 epochs
            "param_scheduler=[dict(type='ConstantLR', begin=5)]",
            'param_scheduler: end should be larger than begin, but got '
            'begin=5, end=2: a part of the schedule without end ends with',
        ),
        (
            'optim_wrapper=dict(optimizer=dict(lr=-1))',
            'optim_wrapper: Invalid learning rate: -1',
        ),
    ],
)
def test_wrong_settings_of_the_optimizer(
    tool, pictures, tmp_path, text, message
):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{CLASSIFIER}'\n{text}\n")
    options = data_options(pictures, 'train', 'val')
    code, error = tool('train.py', config, '--cfg-options', *options)
    assert code == 2 and message in error


@pytest.mark.parametrize(
    'args, message',
    [
        (['configs/nothing.py'], 'config configs/nothing.py does not exist'),
        ([CLASSIFIER], 'data folder data/tiny does not exist'),
        (
            [CLASSIFIER, '--cfg-options', 'max_epoch=3'],
            "the config has no 'max_epoch'",
        ),
        ([CLASSIFIER, '--launcher', 'slurm'], 'needs GPUs'),
    ],
)
def test_wrong_train_arguments(tool, pictures, args, message):
    if '--launcher' in args:
        args = [
            *args,
            '--cfg-options',
            *data_options(pictures, 'train', 'val'),
        ]
    code, error = tool('train.py', *args)
    assert code == 2 and message in error


def test_missing_or_wrong_files_while_training_starts(
    tool, pictures, tmp_path
):
    options = ['--cfg-options', *data_options(pictures, 'train', 'val')]
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict={}), weights)
    config = with_arch(
        tmp_path,
        "backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='no.pth'))",
    )
    for args, message in (
        ([config], 'checkpoint no.pth does not exist'),
        ([CLASSIFIER, '--resume', 'no.pth'], 'no.pth does not exist'),
        ([CLASSIFIER, '--resume', weights], 'holds weights only'),
    ):
        code, error = tool('train.py', *args, *options)
        assert code == 2 and message in error


def test_wrong_number_of_classes(tool, pictures, tmp_path):
    code, error = tool(
        'train.py',
        with_arch(tmp_path, 'head=dict(num_classes=7)'),
        '--cfg-options',
        *data_options(pictures, 'train', 'val'),
    )
    assert code == 2
    assert 'the training data has 10 classes, the head 7' in error


def test_other_classes_than_those_of_training(tool, pictures, tmp_path):
    root = tmp_path / 'pictures'
    shutil.copytree(pictures, root)
    shutil.rmtree(root / 'val/0')
    config = tmp_path / 'folders.py'
    config.write_text(
        f'_base_ = {str(ROOT / CLASSIFIER)!r}\n'
        + ''.join(
            f'{loop}_dataloader = dict(dataset=dict(_delete_=True, '
            f"type='CustomDataset', data_root={str(root)!r}, "
            f"data_prefix='{loop}', "
            f'pipeline=_base_.{loop}_dataloader.dataset.pipeline))\n'
            for loop in ('train', 'val')
        )
    )
    code, error = tool('train.py', config)
    assert code == 2
    assert "class '1' is number 0 in the validation data" in error


def test_interrupted_by_hand(pictures, tmp_path, monkeypatch, capfd):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_iter', interrupt)
    monkeypatch.chdir(ROOT)
    options = [*data_options(pictures, 'train', 'val'), *SMALL_CLS]
    argv = ['--work-dir', str(tmp_path), '--cfg-options', *options]
    monkeypatch.setattr(sys, 'argv', ['train.py', str(CLASSIFIER), *argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path('tools/train.py', run_name='__main__')
    assert stop.value.code == 130
    assert capfd.readouterr().err.splitlines()[-1] == 'interrupted'


@pytest.mark.parametrize(
    'classes, error',
    [
        ('1023456789', "class '1' is number 0 in the test data, in the train"),
        ('abcdefghij', None),  # named otherwise
    ],
)
def test_classes_that_a_checkpoint_is_tested_on(
    classes, error, trained, run, pictures, tmp_path
):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(CLASSIFIER)!r}\n'
        f'test_dataloader = dict(dataset=dict(data_root={str(pictures)!r}, '
        f'metainfo=dict(classes={list(classes)})))\n'
    )
    process = run(
        'tools/test.py',
        config,
        trained[0] / 'epoch_2.pth',
        '--work-dir',
        tmp_path,
        check=False,
    )
    assert process.returncode == (2 if error else 0), process.stderr
    assert error is None or error in process.stderr


@pytest.mark.parametrize(
    'option, places',
    [
        ('data_root=x', 'train_dataloader.dataset.data_root, val_dataloader'),
        ('data_preprocessors.std=1', "the config has no 'data_preprocessors'"),
    ],
)
def test_variable_of_a_config_is_no_setting(tool, option, places):
    code, error = tool(
        'train.py', 'configs/vcmamba_s_8xb128_in1k.py', '--cfg-options', option
    )
    assert code == 2 and places in error


def test_corrupt_picture(tool, run, pictures, tmp_path):
    root = tmp_path / 'pictures'
    shutil.copytree(pictures, root)
    (root / 'train/3/3_1.jpg').write_bytes(b'not a picture')
    options = [
        *data_options(root, 'train', 'val'),
        *SMALL_CLS,
        'train_dataloader.sampler.sampler.type=DefaultSampler',
    ]
    log = run(
        'tools/train.py',
        CLASSIFIER,
        '--work-dir',
        tmp_path / 'work',
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        *options,
    ).stdout
    line = 'train/3/3_1.jpg cannot be read (missing or corrupt)'
    assert line in log and 'Another takes its place (1 of ' in log
    assert 'Epoch(train) [1][5/5]' in log
    for workers in (0, 1):
        code, error = tool(
            'train.py',
            CLASSIFIER,
            '--cfg-options',
            f'train_dataloader.num_workers={workers}',
            'train_dataloader.dataset.pipeline.1.max_rate=0',
            *options,
        )
        assert code == 2 and line in error and 'max_rate=0 allows' in error
    (root / 'val/3/3_1.jpg').write_bytes(b'')
    options = ['--cfg-options', *data_options(root, 'test')]
    code, error = tool('test.py', CLASSIFIER, RELEASE, *options)
    assert code == 2
    assert 'val/3/3_1.jpg cannot be read (missing or corrupt)' in error


def test_corrupt_mask(tool, run_here, scenes, tmp_path):
    """Another takes its place in training, a test ends with its name."""
    root = tmp_path / 'scenes'
    shutil.copytree(scenes, root)
    for split in ('training', 'validation'):
        mask = root / f'annotations/{split}/1.png'
        mask.write_bytes(mask.read_bytes()[:-100])
    log = run_here(
        'train.py',
        SEGMENTER,
        '--work-dir',
        tmp_path / 'work',
        '--no-validate',
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'experiment_name=corrupt_mask',
        *SMALL_SEG,
        *data_options(root, 'train'),
    )
    line = 'annotations/{}/1.png cannot be read (missing or corrupt)'
    assert line.format('training') in log
    assert re.search(r'Another takes its place \(\d+ of \d+ pictures', log)
    assert 'Iter(train) [2/2]' in log
    options = [*SMALL_SEG_TEST, *data_options(root, 'test')]
    checkpoint = tmp_path / 'work/iter_2.pth'
    code, error = tool(
        'test.py', SEGMENTER, checkpoint, '--cfg-options', *options
    )
    assert code == 2 and f'mask {root}/' in error
    assert line.format('validation') in error


def test_wrong_checkpoints(tool, pictures, tmp_path):
    cut, foreign, code_file = (
        tmp_path / name for name in ('cut.pth', 'foreign.pth', 'code.pth')
    )
    cut.write_bytes(RELEASE.read_bytes()[:100_000])
    torch.save({'state_dict': torch.nn.Linear(2, 2).state_dict()}, foreign)
    torch.save({'state_dict': torch.nn.Linear(2, 2)}, code_file)
    cases = {
        tmp_path / 'none.pth': 'none.pth does not exist',
        cut: 'cut.pth is truncated, damaged',
        foreign: r'does not fit DistilledImageClassifier (0 of',
        code_file: 'code.pth was refused, it could run code',
    }
    for path, message in cases.items():
        code, error = tool(
            'test.py',
            CLASSIFIER,
            path,
            '--cfg-options',
            *data_options(pictures, 'test'),
        )
        assert code == 2 and message in error


def test_wrong_test_arguments(tool, pictures):
    options = ['--cfg-options', *data_options(pictures, 'test')]
    args = ['--out', 'x.txt', *options]
    code, error = tool('test.py', CLASSIFIER, RELEASE, *args)
    assert code == 2 and 'must end with .pkl' in error


def test_convert_writes_nothing_on_error(tool, tmp_path):
    dst = tmp_path / 'dst.pth'
    foreign = tmp_path / 'foreign.pth'
    torch.save(torch.nn.Linear(2, 2).state_dict(), foreign)
    for args, message in (
        ([RELEASE, RELEASE], 'name another file'),
        ([RELEASE, dst, '--reverse'], 'leave out --reverse'),
        ([foreign, dst], 'has no released names'),
        ([foreign, dst, '--reverse'], 'keys are not those of'),
    ):
        code, error = tool('convert_checkpoint.py', *args)
        assert code == 2 and message in error
        assert not dst.exists()


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh']
)
def test_launchers_explain_themselves(run, script):
    process = run(f'tools/{script}', 'config.py', check=False)
    assert process.returncode == 2
    assert process.stderr.startswith(f'error: usage: tools/{script} ')
    assert f'usage: tools/{script} ' in run(f'tools/{script}', '--help').stdout
    if script == 'dist_train.sh':
        process = run(f'tools/{script}', 'config.py', 'two', check=False)
        assert process.returncode == 2
        assert "positive number, got 'two'" in process.stderr
