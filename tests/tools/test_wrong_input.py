"""What tools/train.py and test.py say to wrong input."""

import re
import shutil

import pytest
import torch
from conftest import CONFIGS, GOLDEN, ROOT, run_tool
from mmengine.runner import EpochBasedTrainLoop
from tiny_options import SMALL_CLS, SMALL_SEG, SMALL_SEG_TEST, data_options

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

CLASSIFIER = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture
def tool(monkeypatch, capfd, tmp_path):
    """Run a tool in this process; return its exit code and last error."""

    def tool(script, *args):
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as stop:
            run_tool(script, *args, '--work-dir', tmp_path / 'work')
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


def test_corrupt_picture(tool, run_here, pictures, tmp_path):
    root = tmp_path / 'pictures'
    shutil.copytree(pictures, root)
    (root / 'train/3/3_1.jpg').write_bytes(b'not a picture')
    options = [
        *data_options(root, 'train', 'val'),
        *SMALL_CLS,
        'train_dataloader.sampler.sampler.type=DefaultSampler',
    ]
    log = run_here(
        'train.py',
        CLASSIFIER,
        '--work-dir',
        tmp_path / 'work',
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        *options,
    )
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
        'randomness.seed=0',  # others may draw the damaged one too often
        *SMALL_SEG,
        *data_options(root, 'train'),
    )
    line = 'annotations/{}/1.png cannot be read (missing or corrupt)'
    assert line.format('training') in log
    assert re.search(r'Another takes its place \(\d+ of \d+ images', log)
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


def test_interrupted_by_hand(pictures, tmp_path, monkeypatch, capfd):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_iter', interrupt)
    monkeypatch.chdir(ROOT)
    options = [*data_options(pictures, 'train', 'val'), *SMALL_CLS]
    argv = [CLASSIFIER, '--work-dir', tmp_path, '--cfg-options', *options]
    with pytest.raises(SystemExit) as stop:
        run_tool('train.py', *argv)
    assert stop.value.code == 130
    assert capfd.readouterr().err.splitlines()[-1] == 'interrupted'
