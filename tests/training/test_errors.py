"""Wrong settings end in one line that says what is wrong and what helps."""

import numpy as np
import pytest
import torch
from conftest import CONFIGS
from PIL import Image
from torch import nn

from vcmamba_mm.training.classes import _check_losses
from vcmamba_mm.training.command_line import one_line_errors
from vcmamba_mm.training.errors import SettingError, meaning
from vcmamba_mm.training.runner import SafeRunner

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Noise and masks of four classes in ADE20K's layout, three of each."""
    root = tmp_path_factory.mktemp('ade')
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for folder, shape in (
            ('images', (96, 150, 3)),
            ('annotations', (96, 150)),
        ):
            path = root / folder / split
            path.mkdir(parents=True)
            ending = 'jpg' if folder == 'images' else 'png'
            for i in range(3):
                pixels = rng.integers(0, 4, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(path / f'{i}.{ending}')
    return root


@pytest.fixture
def train(run_here, tmp_path, request):
    """Train a tiny model with a changed config; return the error."""

    def train(base, text, *options):
        root = request.getfixturevalue(
            'scenes' if base == 'tiny_segmenter' else 'pictures'
        )
        config = tmp_path / 'config.py'
        config.write_text(f"_base_ = '{CONFIGS}/{base}.py'\n{text}\n")
        if base == 'tiny_segmenter':
            options += (
                'model.backbone.init_cfg=None',
                'train_dataloader.dataset.pipeline.2.scale=(160,96)',
                'val_dataloader.dataset.pipeline.1.scale=(160,96)',
            )
        printed = run_here(
            'train.py',
            config,
            '--work-dir',
            tmp_path,
            '--cfg-options',
            *(
                f'{loop}_dataloader.dataset.data_root={root}'
                for loop in ('train', 'val')
            ),
            *options,
        )
        return printed

    return train


HEAD = 'model=dict(head=dict(loss=dict(_delete_=True, {})))'
AUGMENTS = 'model=dict(train_cfg=dict(augments=[dict({})]))'
UPER = (
    "model=dict(neck=None, decode_head=dict(_delete_=True, type='UPerHead', "
    'in_channels=[16, 32, 48, 64], in_index=[0, 1, 2, 3], channels=16, '
    "num_classes=150, norm_cfg=dict(type='SyncBN')))"
)


@pytest.mark.parametrize(
    'text, option, error',
    [
        (
            "optim_wrapper=dict(optimizer=dict(type='AdmaW'))",
            '',
            'optim_wrapper: AdmaW is not in the mmpretrain::optimizer '
            'registry: did you mean AdamW or ',
        ),
        (
            "optim_wrapper=dict(constructor='LayerDecay')",
            '',
            'did you mean LayerDecayOptimWrapperConstructor',
        ),
        (
            "train_dataloader=dict(collate_fn=dict(type='default_colate'))",
            '',
            'did you mean default_collate or ',
        ),
        ("model=dict(head=dict(type='Unheard'))", '', 'at custom_imports'),
        # It fails in the middle of the model's making.
        (
            AUGMENTS.format("type='Mixup'"),
            '',
            "missing 1 required positional argument: 'alpha'",
        ),
        (
            AUGMENTS.format("type='Mixup', alpha=1"),
            '',
            'error: mixup.py asserts isinstance(alpha, float) and alpha > 0',
        ),
        (
            "param_scheduler=[dict(type='ConstantLR', begin=5)]",
            '',
            'begin=5, end=1: a part of the schedule without end ends with',
        ),
        (
            "param_scheduler=[dict(type='CosineAnnealingLR', t_max=5)]",
            '',
            'param_scheduler: CosineAnnealingParamScheduler.__init__() got an '
            "unexpected keyword argument 't_max' (VCMAMBA_MM_TRACEBACK",
        ),
        (
            HEAD.format("type='CrossEntropyLoss', class_weight=9 * [1.0]"),
            '',
            'class_weight of the CrossEntropyLoss of model.head has 9 numbers '
            'for 10 outputs',
        ),
        (
            AUGMENTS.format("type='Mixup', alpha=0.8"),
            'data_preprocessor.num_classes=7',
            'the training data has 10 classes, what mixes images 7: set '
            'data_preprocessor.num_classes',
        ),
        (
            '',
            'train_cfg.val_interval=0',
            'train_cfg.val_interval must be at least 1, got 0',
        ),
        # One picture of 32 x 32 pixels has one place in the last stage.
        (
            'train_dataloader=dict(batch_size=1)',
            'train_dataloader.dataset.pipeline.2.scale=(32,32)',
            'backbone.stages.3.downsample.1 normalizes each channel over the '
            'batch and has but one value of it',
        ),
        (
            'model=dict(neck=dict(in_channels=33))',
            '',
            'neck.norm is built for 33 channels and gets 32: see in_channels '
            'of model.neck',
        ),
        (
            "default_hooks=dict(checkpoint=dict(save_best='accuracy/top2'))",
            'train_dataloader.batch_size=20',
            'save_best: accuracy/top2 is not measured, only accuracy/top1, ',
        ),
        (
            "val_evaluator=dict(_delete_=True, type='mmseg.IoUMetric')",
            'train_dataloader.batch_size=20',
            "IoUMetric wants 'pred_sem_seg', which this model does not",
        ),
    ],
)
def test_classifier(train, text, option, error):
    options = [option] if option else []
    assert error in train('tiny_plain', text, *options)


@pytest.mark.parametrize(
    'text, option, error',
    [
        (
            UPER,
            'train_dataloader.batch_size=1',
            'decode_head.psp_modules.0.1.bn normalizes each channel over',
        ),
        (
            'model=dict(decode_head=dict(loss_decode=dict(class_weight=[1])))',
            '',
            'model.decode_head has 1 numbers for 150 outputs',
        ),
        (
            'model=dict(decode_head=dict(num_classes=1))',
            '',
            'set num_classes=2, out_channels=1 and loss_decode.use_sigmoid',
        ),
        (
            'model=dict(decode_head=dict(num_classes=2, out_channels=1))',
            '',
            'set num_classes=2, out_channels=1 and loss_decode.use_sigmoid',
        ),
        (
            'model=dict(backbone=dict(out_indices=(0, 1, 3)))',
            '',
            'model.neck has in_channels=[16, 32, 48, 64] and gets 3 feature',
        ),
        (
            'model=dict(decode_head=dict(in_index=[0, 1, 2, 4]))',
            '',
            'model.decode_head has in_index=[0, 1, 2, 4] and gets 4 feature',
        ),
        (
            "val_dataloader=dict(dataset=dict(type='BaseSegDataset'))",
            '',
            'val_dataloader.dataset has no names of classes',
        ),
        (
            "train_dataloader=dict(dataset=dict(img_suffix='.gif'))",
            '',
            'train_dataloader.dataset finds no images',
        ),
        (
            '',
            'train_dataloader.dataset.pipeline.3.crop_size=(512,512)',
            "a segmenter's model.data_preprocessor.size has to be its crop",
        ),
    ],
)
def test_segmenter(train, text, option, error):
    options = [
        option or 'train_dataloader.dataset.pipeline.3.crop_size=(64,64)'
    ]
    assert error in train('tiny_segmenter', text, *options)


def caught(function, *args):
    with pytest.raises(Exception) as raised:
        function(*args)
    return raised.value


@pytest.mark.parametrize(
    'layer, shape',
    [
        (nn.Conv2d(5, 3, 1), (2, 4, 6, 6)),
        (nn.Linear(5, 3), (2, 4)),
        (nn.LayerNorm(5), (2, 7, 4)),
        (nn.BatchNorm2d(5), (2, 4, 6, 6)),
        (nn.InstanceNorm2d(5, affine=True), (2, 4, 6, 6)),
    ],
)
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_channels(layer, shape, device):
    """Whatever PyTorch says of them."""
    model = nn.Sequential(nn.Sequential(nn.ReLU(), layer)).to(device)
    error = caught(model, torch.ones(shape, device=device))
    assert meaning(error) == (
        '0.1 is built for 5 channels and gets 4: see in_channels of model.0'
    )


@pytest.mark.parametrize(
    'layer, shape',
    [(nn.Linear(5, 3), (2, 5)), (nn.Conv2d(3, 4, 1), (3, 8, 8))],
)
def test_others_keep_their_traceback(layer, shape):
    error = caught(nn.Sequential(layer), torch.ones(shape).double())
    assert isinstance(error, RuntimeError) and meaning(error) is None
    with pytest.raises(RuntimeError), one_line_errors(ValueError):
        raise error


def test_one_line_of_a_known_error(capsys, monkeypatch):
    def fail():
        with one_line_errors(OSError):
            nn.BatchNorm1d(5).train()(torch.ones(1, 5))

    with pytest.raises(SystemExit, match='2'):
        fail()
    assert 'normalizes each channel over the batch' in capsys.readouterr().err
    monkeypatch.setenv('VCMAMBA_MM_TRACEBACK', '1')
    with pytest.raises(ValueError, match='Expected more than 1 value'):
        fail()


@pytest.mark.parametrize(
    'option', ['model.head', 'x=[dict(a=1,b=(1,2))]', 'x=(1,2']
)
def test_options_that_cannot_be_read(run_here, option):
    printed = run_here('train.py', 'config.py', '--cfg-options', option)
    assert f'--cfg-options: {option}: ' in printed


def test_settings_of_workers_without_workers():
    loader = dict(
        dataset=list(range(4)),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        num_workers=0,
        persistent_workers=True,
        prefetch_factor=4,
        timeout=20,
        multiprocessing_context='fork',
    )
    before = dict(loader)
    assert len(list(SafeRunner.build_dataloader(loader))) == 2
    assert loader == before


def test_what_is_built_already_is_taken():
    loader = dict(
        dataset=list(range(4)),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        collate_fn=tuple,
    )
    assert list(SafeRunner.build_dataloader(loader)) == [(0, 1), (2, 3)]


def test_weights_of_no_object():
    """MaskFormer and its kind have one output more than classes."""
    head = nn.Module()
    head.num_classes, head.num_queries = 3, 5
    head.loss_cls = nn.Module()
    head.loss_cls.class_weight = [1.0, 1.0, 1.0, 0.1]
    _check_losses('model.decode_head', head)
    head.loss_cls.class_weight.pop()
    with pytest.raises(SettingError, match='3 numbers for 4 outputs'):
        _check_losses('model.decode_head', head)
