"""The switches of docs/training.md, each run by two processes."""

import json
import re
import shlex
from argparse import ArgumentParser

import pytest
import torch
from conftest import CONFIGS, ROOT, needs_fsdp2
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, OPTIMIZERS, init_default_scope

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.training.command_line import add_common_arguments
from vcmamba_mm.training.config import (
    adapt_to_cpu,
    check_pretrained,
    check_switches,
    name_unreadable,
    set_precision,
)
from vcmamba_mm.training.errors import SettingError
from vcmamba_mm.training.runner import _check_type as check_type

pytest.importorskip('mmpretrain')
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

CONFIG = CONFIGS / 'tiny_plain.py'
# Other families, and how many blocks they have.
FAMILIES = dict(VMamba=6, MambaVision=8, PlainMamba=4)
ROW = re.compile(r'^\| ([\w ]+) \| `(-[^`]+)` \|', re.MULTILINE)
# As the guide has them, name: arguments.
SWITCHES = dict(ROW.findall((ROOT / 'docs/training.md').read_text()))

ALL = dict(steps=3, blocks=50, dtypes=['torch.bfloat16'])


def first_epoch(facts, key):
    return [line[key] for line in facts['log'] if line['epoch'] == 1]


@pytest.fixture(scope='session')
def seen(run, pictures, tmp_path_factory):
    """What each switch did in the first process, and what it logged."""
    out = tmp_path_factory.mktemp('switches')
    jobs = {}

    def add(name, words, *more_options, config=CONFIG):
        # Compiling for this CPU takes longer than all the rest.
        words = words.replace('compile=True', 'compile.backend=eager')
        words, _, options = words.partition('--cfg-options')
        jobs[name] = [
            str(config),
            '--launcher=pytorch',
            '--no-validate',
            f'--work-dir={out / name.removesuffix(" resumed")}',
            *shlex.split(words),
            '--cfg-options',
            f'train_dataloader.dataset.data_root={pictures}',
            *shlex.split(options),
            *more_options,
        ]

    add('nothing', '', 'train_cfg.max_epochs=2')
    can_shard = torch.__version__ >= '2.6'
    for name, words in SWITCHES.items():
        if can_shard or name != 'FSDP2':
            add(name, words)
    halves = 'optim_wrapper.accumulative_counts=2'
    checkpoints = 'model.backbone.with_cp=True'
    last = 'model.backbone.channels_last=True'
    for family in FAMILIES:
        config = CONFIGS / f'tiny_{family.lower()}.py'
        add(family, '', config=config)
        add(f'{family} checkpointing', '', checkpoints, config=config)
        if can_shard:
            add(f'{family} FSDP2', SWITCHES['FSDP2'], config=config)
    add('together', '--amp bfloat16', halves, checkpoints, last)
    if can_shard:
        sharded = SWITCHES['FSDP2']
        add('sharded', '--amp bfloat16 ' + sharded, halves, checkpoints)
        sharded = '--resume ' + sharded
        add('FSDP2 resumed', sharded, 'train_cfg.max_epochs=2')
    (out / 'jobs.json').write_text(json.dumps(jobs))
    process = run(
        'python',
        '-m',
        'torch.distributed.run',
        '--nproc-per-node=2',
        '--master-port=29614',
        'tests/training/switches_run.py',
        out / 'jobs.json',
        out,
    )
    seen = {}
    for name in jobs:
        seen[name] = json.loads((out / f'{name}.json').read_text())
        folder = out / name.removesuffix(' resumed')
        logs = sorted(folder.glob('*/vis_data/scalars.json'))
        log = logs[-1 if name.endswith('resumed') else 0]
        lines = map(json.loads, log.read_text().splitlines())
        seen[name]['log'] = [line for line in lines if 'loss' in line]
        seen[name]['folder'] = folder
        seen[name]['stdout'] = process.stdout
    return seen


@pytest.mark.parametrize(
    'name, change',
    [
        ('gradient accumulation', dict(steps=3)),
        ('bfloat16', dict(dtypes=['torch.bfloat16'])),
        ('float16', dict(dtypes=['torch.float16'])),
        ('activation checkpointing', dict(blocks=50)),
        ('channels last', dict(channels_last=True)),
        pytest.param('FSDP2', dict(sharded=True), marks=needs_fsdp2),
        *(
            case
            for family, blocks in FAMILIES.items()
            for case in (
                (family, dict(blocks=5 * blocks)),
                (f'{family} checkpointing', dict(blocks=2 * 5 * blocks)),
                pytest.param(
                    f'{family} FSDP2',
                    dict(blocks=5 * blocks, sharded=True),
                    marks=needs_fsdp2,
                ),
            )
        ),
        ('together', dict(channels_last=True, **ALL)),
        pytest.param('sharded', dict(sharded=True, **ALL), marks=needs_fsdp2),
    ],
)
def test_switch_does_what_it_says(seen, name, change):
    # 20 pictures repeated three times, a third of it for each epoch, by two
    # processes in batches of two; five blocks.
    expected = dict(
        steps=5,
        forwards=5,
        blocks=25,
        dtypes=['torch.float32'],
        channels_last=False,
        graphs=0,
        sharded=False,
        decays=[0.0, 0.05],
    )
    expected.update(change)
    assert {key: seen[name][key] for key in expected} == expected


def test_compilation_makes_one_graph(seen):
    assert seen['compilation']['graphs'] == 1
    assert seen['compilation']['steps'] == 5
    assert seen['nothing']['graphs'] == 0


def test_learning_rate_is_that_of_the_accumulated_batch(seen):
    log = seen['gradient accumulation']['stdout']
    assert 'Scaling the original LR by 0.0078125' in log  # 2 * 2 * 2 / 1024


@pytest.mark.parametrize(
    'name, tolerance',
    [
        ('activation checkpointing', 1e-5),
        ('compilation', 1e-5),
        pytest.param('FSDP2', 1e-5, marks=needs_fsdp2),
        *((f'{family} checkpointing', 1e-5) for family in FAMILIES),
        *(
            pytest.param(f'{family} FSDP2', 1e-5, marks=needs_fsdp2)
            for family in FAMILIES
        ),
        ('channels last', 1e-4),  # other kernels
        ('float16', 2e-3),
        ('bfloat16', 1e-2),
        ('together', 1e-2),
        pytest.param('sharded', 1e-2, marks=needs_fsdp2),
    ],
)
def test_switch_keeps_losses_and_gradients(seen, name, tolerance):
    for key in ['loss', 'grad_norm'] if tolerance <= 1e-4 else ['loss']:
        family = name.split()[0]
        plain = seen[family if family in FAMILIES else 'nothing']
        plain = first_epoch(plain, key)
        assert len(plain) == 5
        assert first_epoch(seen[name], key) == pytest.approx(
            plain, rel=tolerance
        )


def test_sharding_with_an_older_pytorch_is_refused(monkeypatch):
    from vcmamba_mm.training.fsdp import FSDP2Strategy

    version = torch.torch_version.TorchVersion('2.4.1')
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(ImportError, match='FSDP2Strategy needs .* >= 2.6'):
        FSDP2Strategy()


@needs_fsdp2
def test_sharded_run_resumes_and_saves_whole_weights(seen):
    resumed = seen['FSDP2 resumed']
    assert [line['step'] for line in resumed['log']] == [6, 7, 8, 9, 10]
    whole = read_checkpoint(resumed['folder'] / 'epoch_2.pth')['state_dict']
    plain = read_checkpoint(seen['nothing']['folder'] / 'epoch_2.pth')
    raw = plain['ema_state_dict']  # see EMAHook
    for name, value in whole.items():
        torch.testing.assert_close(
            value, raw[f'module.{name}'], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(launcher='none', strategy={}), 'needs processes'),
        (
            dict(strategy={}, custom_hooks=[dict(type='EMAHook')]),
            'sharded weights cannot be averaged',
        ),
        (
            dict(
                strategy=dict(type='FSDP2Strategy'),
                optim_wrapper=dict(optimizer=dict(type='Lamb')),
            ),
            'Lamb of mmpretrain cannot take sharded weights',
        ),
        (
            dict(strategy={}, model=dict(backbone=dict(channels_last=True))),
            'leave model.backbone.channels_last out',
        ),
        (
            dict(
                val_cfg={},
                default_hooks=dict(checkpoint=dict(save_best='top1_ema')),
            ),
            'save_best: top1_ema is measured where a hook',
        ),
        (
            dict(compile=True, model=dict(backbone=dict(with_cp=True))),
            'compile and model.backbone.with_cp exclude each other',
        ),
    ],
)
def test_switches_that_exclude_each_other(cfg, message):
    with pytest.raises(ValueError, match=message):
        check_switches(Config(dict(model={}, launcher='pytorch') | cfg))


def test_restarts_of_a_sharded_run_want_no_file(monkeypatch):
    """Each would begin with it again."""
    cfg = Config(
        dict(model={}, launcher='pytorch', strategy={}, resume_from='a.pth')
    )
    check_switches(cfg)
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    with pytest.raises(ValueError, match='a.pth: say --resume without a file'):
        check_switches(cfg)
    cfg.resume_from = 'auto'
    check_switches(cfg)


def test_optimizers_of_the_scope_are_found():
    """Before there is a runner, whose scope it is."""
    with pytest.raises(KeyError, match='mmengine::optimizer'):
        check_type(OPTIMIZERS, dict(type='Adan'), 'mmengine')
    check_type(OPTIMIZERS, dict(type='Adan'), 'mmpretrain')


def cfg_options(name):
    parser = ArgumentParser()
    add_common_arguments(parser)
    return parser.parse_known_args(shlex.split(SWITCHES[name]))[0].cfg_options


def test_sharding_ranks_no_average():
    for path in (ROOT / 'configs').rglob('*_in1k.py'):
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(cfg_options('FSDP2'))
        assert not cfg.custom_hooks
        best = cfg.default_hooks.checkpoint.save_best
        assert not best.endswith('_ema'), path.stem


def test_average_while_gradients_accumulate():
    """The guide's option is for the hook that keeps the average."""
    options = cfg_options('gradient accumulation')
    families = set()
    for path in (ROOT / 'configs').rglob('*_in1k.py'):
        cfg = Config.fromfile(path)
        if not any('EMA' in hook.type for hook in cfg.custom_hooks):
            assert path.stem == 'plainmamba_l1_8xb256_in1k'
            continue
        init_default_scope(cfg.default_scope)
        cfg.merge_from_dict(options)
        average, *others = [HOOKS.build(hook) for hook in cfg.custom_hooks]
        assert average.ema_cfg['interval'] == 2, path.stem
        assert not any(isinstance(hook, EMAHook) for hook in others)
        families.add(cfg.model.backbone.type)
    assert families == {'VCMamba', 'VMamba', 'MambaVision', 'PlainMamba'}


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """In float64, with running statistics."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.norm_cfg = dict(type='BN')
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    samples = [DataSample().set_gt_label(i) for i in range(4)]

    def step(count):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).double().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        wrapper = OptimWrapper(optimizer, accumulative_counts=count)
        wrapper.initialize_count_status(model, 0, count)
        for part in range(count):
            rows = slice(part * 4 // count, (part + 1) * 4 // count)
            with wrapper.optim_context(model):
                loss = model(images[rows], samples[rows], mode='loss')
                wrapper.update_params(loss['loss'])
        return model.state_dict()

    whole, halves = step(1), step(2)
    torch.testing.assert_close(halves, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    'weights',
    [
        dict(pretrained='x.pth'),
        dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth')),
        dict(init_cfg=[dict(type='Pretrained', checkpoint='x.pth')]),
    ],
)
def test_weights_of_a_whole_model_go_into_load_from(weights):
    with pytest.raises(SettingError, match="load_from='x.pth'"):
        check_pretrained(
            Config(dict(default_scope='mmpretrain', model=weights))
        )
    check_pretrained(Config(dict(model=dict(init_cfg=dict(type='Normal')))))


def test_weights_of_a_segmenters_backbone_are_mmsegs():
    model = dict(type='EncoderDecoder', pretrained='x.pth')
    check_pretrained(Config(dict(default_scope='mmseg', model=model)))


def test_classes_in_place_of_names():
    """As in configs in pure Python."""
    cfg = dict(
        launcher='none',
        model=dict(norm_cfg=dict(type=torch.nn.SyncBatchNorm)),
        optim_wrapper=dict(type=AmpOptimWrapper),
    )
    cfg = Config(cfg)
    adapt_to_cpu(cfg)
    assert cfg.model.norm_cfg.type == 'BN'
    assert cfg.optim_wrapper == dict(type='OptimWrapper')
    cfg = dict(model={}, launcher='pytorch', strategy=dict(type='x'))
    cfg['custom_hooks'] = [dict(type=EMAHook)]
    with pytest.raises(ValueError, match='leave mmengine.*EMAHook out'):
        check_switches(Config(cfg))


@pytest.mark.parametrize(
    'asked, wrapper, expected',
    [
        (None, dict(dtype='float16', loss_scale=512.0), 'OptimWrapper'),
        (None, dict(), 'OptimWrapper'),
        (None, dict(dtype='bfloat16'), 'CPUAmpOptimWrapper'),
        ('float16', dict(), 'CPUAmpOptimWrapper'),
        ('bfloat16', dict(dtype='float16'), 'CPUAmpOptimWrapper'),
        ('float32', dict(dtype='bfloat16'), 'OptimWrapper'),
    ],
)
def test_precision_on_a_cpu(asked, wrapper, expected):
    """float16 is slow there: only if it is asked for."""
    optimizer = dict(type='SGD', lr=0.1)
    wrapper = dict(wrapper, type='AmpOptimWrapper', optimizer=optimizer)
    cfg = Config(dict(model={}, launcher='none', optim_wrapper=wrapper))
    if asked:
        cfg.precision = asked
        set_precision(cfg, asked)
    adapt_to_cpu(cfg)
    assert cfg.optim_wrapper.type == expected
    built = build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)
    dtype = getattr(built, 'cast_dtype', torch.float32)
    expected = asked or ('bfloat16' if 'dtype' in cfg.optim_wrapper else None)
    assert dtype == getattr(torch, expected or 'float32')


def test_float16_scales_the_loss_of_a_config_with_bfloat16():
    for given, scale in (
        (dict(enabled=False), 'dynamic'),
        (dict(init_scale=8.0), dict(init_scale=8.0)),
        (512.0, 512.0),
    ):
        wrapper = dict(
            type='AmpOptimWrapper', dtype='bfloat16', loss_scale=given
        )
        cfg = Config(dict(optim_wrapper=wrapper))
        set_precision(cfg, 'bfloat16')
        assert cfg.optim_wrapper == wrapper
        set_precision(cfg, 'float16')
        assert cfg.optim_wrapper == dict(
            wrapper, dtype='float16', loss_scale=scale
        )


@pytest.mark.parametrize(
    'scope, old, new',
    [
        (None, 'mmseg.LoadAnnotations', 'LoadMaskStrict'),
        ('mmdet', 'mmseg.LoadAnnotations', 'LoadMaskStrict'),
        ('mmseg', 'LoadAnnotations', 'LoadMaskStrict'),
        ('mmdet', 'LoadAnnotations', 'LoadAnnotations'),  # its own
        (None, 'mmpretrain.CustomDataset', 'mmpretrain.ClassFolders'),
        ('mmpretrain', 'CustomDataset', 'mmpretrain.ClassFolders'),
        ('mmseg', 'CustomDataset', 'CustomDataset'),
    ],
)
def test_what_reads_strictly_in_every_scope(scope, old, new):
    cfg = Config(
        dict(
            default_scope=scope,
            default_hooks=None,
            train_dataloader=dict(dataset=[dict(type=old)]),
        )
    )
    name_unreadable(cfg, 'train')
    assert cfg.train_dataloader.dataset[0].type == new
    checked = 'check_masks' in (cfg.default_hooks or {})
    assert checked == (new == 'LoadMaskStrict' or scope == 'mmseg')
