"""Interrupted and resumed runs, in this process, with a model of one layer."""

import errno
import itertools
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    init_default_scope,
)
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from vcmamba_mm import files
from vcmamba_mm.checkpoints import CheckpointError, read_checkpoint
from vcmamba_mm.training.errors import ProcessError, SettingError
from vcmamba_mm.training.hooks import IterSeedHook, NonFiniteError
from vcmamba_mm.training.loops import ResumableEpochLoop, ResumeError
from vcmamba_mm.training.runner import SafeRunner, build_runner

SAMPLES, BATCH, EPOCHS = 10, 4, 3
LENGTH = -(-SAMPLES // BATCH)  # iterations of an epoch


class Killed(BaseException):
    """In place of SIGKILL: nothing handles it."""


@MODELS.register_module()
class ToyModel(BaseModel):
    """Draws from all three generators, and has running statistics."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, mode='tensor'):
        x = torch.stack(inputs)
        if mode == 'predict':
            return [self.norm(self.layer(x))]
        x = x * np.random.beta(0.8, 0.8) + random.random()
        return dict(loss=self.dropout(self.norm(self.layer(x))).square().sum())


@DATASETS.register_module()
class ToyData(BaseDataset):
    """Remembers what was read of it; ``fault`` happens at sample 3."""

    def __init__(self, fault=None):
        super().__init__(serialize_data=False)
        self.read = []
        self.fault = fault

    def load_data_list(self):
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(SAMPLES, 3, generator=generator)
        return [dict(inputs=row) for row in data]

    def __getitem__(self, index):
        self.read.append(index)
        if index == 3 and self.fault == 'hang':
            time.sleep(60)
        elif index == 3 and self.fault == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(inputs=self.data_list[index]['inputs'])


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Goes up and down, so that there is a best one in the middle."""

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].sum()))

    def compute_metrics(self, results):
        return dict(acc=sum(results) % 1, top=-sum(results) % 1)


@HOOKS.register_module()
class DieHook(Hook):
    """Be killed when ``iter`` is ``at``, where a hook is called so."""

    priority = 'LOWEST'

    def __init__(self, at, where='after_train_iter'):
        self.at = at
        setattr(self, where, self.die)

    def die(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            raise Killed


@HOOKS.register_module()
class NoteHook(Hook):
    """Remembers the numbers of the batches."""

    def __init__(self):
        self.numbers = []

    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        self.numbers.append(batch_idx)


@HOOKS.register_module()
class PoisonHook(Hook):
    """Not a number in the data of some iterations."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.at:
            data_batch['inputs'] = [x * np.nan for x in data_batch['inputs']]


@HOOKS.register_module()
class FullDiskHook(Hook):
    """No file may grow beyond ``size`` bytes from iteration ``at`` on."""

    def __init__(self, at, size):
        self.at = at
        self.size = size

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


names = itertools.count()


def config(work_dir, **kwargs):
    loader = dict(
        batch_size=BATCH, num_workers=0, dataset=dict(type='ToyData')
    )
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                **loader, sampler=dict(type='DefaultSampler', shuffle=True)
            ),
            val_dataloader=dict(
                **loader, sampler=dict(type='DefaultSampler', shuffle=False)
            ),
            train_cfg=dict(type='ResumableEpochLoop', max_epochs=EPOCHS),
            val_cfg=dict(),
            val_evaluator=dict(type='ToyMetric'),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            param_scheduler=dict(
                type='CosineAnnealingLR',
                T_max=EPOCHS,
                convert_to_iter_based=True,
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='AtomicCheckpointHook',
                    by_epoch=False,
                    interval=1,
                    save_best='acc',
                ),
                iter_seed=dict(type='IterSeedHook'),
                check_finite=dict(type='CheckFiniteHook'),
            ),
            custom_hooks=[
                dict(type='EMAHook', momentum=0.1, update_buffers=True)
            ],
            default_scope='mmengine',
            log_level='ERROR',
            experiment_name=f'run_{next(names)}',
        )
    )
    cfg.merge_from_dict(kwargs)
    return cfg


def by_iterations(**kwargs):
    """Settings of a run without epochs, of the same length."""
    return {
        'train_cfg': dict(
            _delete_=True,
            type='IterBasedTrainLoop',
            max_iters=EPOCHS * LENGTH,
            val_interval=LENGTH,
        ),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'param_scheduler.T_max': EPOCHS * LENGTH,
        'param_scheduler.by_epoch': False,
        'param_scheduler.convert_to_iter_based': False,
        **kwargs,
    }


def train(work_dir, *hooks, error=None, runner=SafeRunner, **kwargs):
    """Train, with more hooks, up to an error if one is expected."""
    init_default_scope('mmengine')
    cfg = config(work_dir, **kwargs)
    cfg.custom_hooks.extend(hooks)
    runner = runner.from_cfg(cfg)
    if error is None:
        runner.train()
    else:
        with pytest.raises(error) as caught:
            runner.train()
        runner.error = str(caught.value)
    return runner


def die(at, where='after_train_iter'):
    return dict(type='DieHook', at=at, where=where)


def differences(left, right, name=''):
    """Where nested dicts and lists of tensors and numbers are not the same."""
    if isinstance(left, dict) and isinstance(right, dict):
        yield from (f'{name}/{key}' for key in left.keys() ^ right.keys())
        for key in left.keys() & right.keys():
            yield from differences(left[key], right[key], f'{name}/{key}')
    elif isinstance(left, (list, tuple)) and len(left) == len(right):
        for i, pair in enumerate(zip(left, right)):
            yield from differences(*pair, f'{name}/{i}')
    elif isinstance(left, torch.Tensor):
        if not torch.equal(left, right):
            yield name
    elif left != right:
        yield f'{name}: {left} != {right}'


def what_is_left(work_dir):
    """All that has to be equal at the end of two runs."""
    names = sorted(path.name for path in Path(work_dir).glob('*.pth'))
    left = {name: read_checkpoint(Path(work_dir) / name) for name in names}
    for content in left.values():
        history = content.pop('message_hub')['log_scalars']['train/loss']
        content['losses'] = history.data[0].tolist()
        del content['meta']
    left['last'] = Path((Path(work_dir) / 'last_checkpoint').read_text()).name
    return left


# The second validation is better than the first, the third is not.
SEED = dict(seed=4)


@pytest.fixture(scope='module', params=['epochs', 'iterations'])
def whole(request, tmp_path_factory):
    """Settings and end of a run that nothing interrupts."""
    settings = dict if request.param == 'epochs' else by_iterations
    work_dir = tmp_path_factory.mktemp('whole')
    torch.set_num_threads(1)  # another number, other sums
    train(work_dir, randomness=SEED, **settings())
    return settings, what_is_left(work_dir)


def test_resumed_at_any_iteration_ends_the_same(whole, tmp_path):
    """Weights, average, optimizer, schedule, losses, best checkpoint.

    The resumed run is not told the seed: it has to find it.
    """
    settings, expected = whole
    for at in range(EPOCHS * LENGTH - 1):
        work_dir = tmp_path / str(at)
        train(work_dir, die(at), error=Killed, randomness=SEED, **settings())
        note = dict(type='NoteHook')
        runner = train(work_dir, note, resume_from='auto', **settings())
        assert not list(differences(what_is_left(work_dir), expected)), at
        # What was seen before is not read again.
        read = runner.train_dataloader.dataset.read
        if settings is dict:
            epochs, iterations = divmod(at + 1, LENGTH)
            seen = epochs * SAMPLES + iterations * BATCH
            assert len(read) == EPOCHS * SAMPLES - seen
            (note,) = (h for h in runner.hooks if isinstance(h, NoteHook))
            assert note.numbers == (EPOCHS * [*range(LENGTH)])[at + 1 :]
        else:
            assert len(read) == (EPOCHS * LENGTH - at - 1) * BATCH


def test_two_seeds_differ(whole, tmp_path):
    """So that equality above is not for want of randomness."""
    settings, expected = whole
    train(tmp_path, randomness=dict(seed=6), **settings())
    found = list(differences(what_is_left(tmp_path), expected))
    assert any('state_dict/layer.weight' in name for name in found)


def test_killed_while_it_validates(whole, tmp_path):
    """The validation is done again, so the best checkpoint is the same."""
    settings, expected = whole
    for iteration in (LENGTH, 2 * LENGTH, EPOCHS * LENGTH):
        work_dir = tmp_path / str(iteration)
        hook = die(iteration, 'before_val_iter')
        train(work_dir, hook, error=Killed, randomness=SEED, **settings())
        train(work_dir, resume_from='auto', **settings())
        assert not list(differences(what_is_left(work_dir), expected))


BY_EPOCH = {
    'default_hooks.checkpoint.by_epoch': True,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
}


def test_checkpoints_of_epochs(tmp_path):
    whole = tmp_path / 'whole'
    train(whole, randomness=SEED, **BY_EPOCH)
    expected = what_is_left(whole)
    assert {'epoch_2.pth', 'epoch_3.pth', 'last'} < expected.keys()
    assert len(expected) == 4  # and the best one
    for iteration, where in (
        (LENGTH + 1, 'after_train_iter'),
        (2 * LENGTH, 'before_val_iter'),
    ):
        work_dir = tmp_path / where
        hook = die(iteration, where)
        train(work_dir, hook, error=Killed, randomness=SEED, **BY_EPOCH)
        train(work_dir, resume_from='auto', **BY_EPOCH)
        assert not list(differences(what_is_left(work_dir), expected))


@pytest.mark.parametrize('after', [False, True])
def test_killed_while_it_saves(tmp_path, monkeypatch, after):
    """At every renaming, before and after: K and the best are always there."""
    kept = {
        'default_hooks.checkpoint.max_keep_ckpts': 2,
        'train_cfg.max_epochs': 2,
    }
    train(tmp_path / 'whole', randomness=SEED, **kept)
    expected = what_is_left(tmp_path / 'whole')
    replace = os.replace
    done = 0
    for number in itertools.count():
        calls = itertools.count()

        def dying(source, target, number=number, calls=calls):
            last = next(calls) == number
            if not last or after:
                replace(source, target)
            if last:
                raise Killed

        work_dir = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, 'replace', dying)
            try:
                train(work_dir, randomness=SEED, **kept)
            except Killed:
                done += 1
            else:
                break
        steps = [p.stem for p in work_dir.glob('iter_*.pth')]
        newest = max((int(s.removeprefix('iter_')) for s in steps), default=0)
        assert min(newest, 2) <= len(steps) <= 3
        if newest > LENGTH:
            best = list(map(read_checkpoint, work_dir.glob('best_*.pth')))
            assert 1 <= len(best) <= 2
        leftover = work_dir / '.iter_9.pth.1.tmp'
        leftover.write_bytes(b'half')
        train(work_dir, resume_from='auto', randomness=SEED, **kept)
        assert not list(differences(what_is_left(work_dir), expected)), number
        assert not leftover.exists()
    # A checkpoint and its pointer in each iteration, and again with each of
    # the two best ones.
    assert done == 2 * 2 * LENGTH + 2 * 3


def test_best_by_two_metrics(tmp_path):
    """Each has its own; a worse one is removed once a better one is there."""
    settings = {
        'default_hooks.checkpoint.save_best': ['acc', 'top'],
        'default_hooks.checkpoint.interval': 100,
    }
    runner = train(tmp_path, randomness=SEED, **settings)
    hub = runner.message_hub
    for name in ('acc', 'top'):
        accuracies = hub.get_scalar(f'val/{name}').data[0]
        best = LENGTH * (int(np.argmax(accuracies)) + 1)
        assert [p.name for p in tmp_path.glob(f'best_{name}_*')] == [
            f'best_{name}_iter_{best}.pth'
        ]
    assert len(set(hub.get_scalar('val/acc').data[0])) == EPOCHS


def test_stock_hook_and_stock_runner_write_whole_files(tmp_path, monkeypatch):
    def dying(source, target):
        raise Killed

    monkeypatch.setattr(files.os, 'replace', dying)
    stock = {'default_hooks.checkpoint.type': 'CheckpointHook'}
    train(tmp_path / 'hook', error=Killed, **stock)
    train(tmp_path / 'runner', error=Killed, runner=Runner)
    assert not list(tmp_path.glob('*/*.pth'))


@pytest.fixture
def interrupted(tmp_path):
    """A run that was killed when it had three checkpoints, and their names."""
    train(tmp_path, die(2), error=Killed, randomness=SEED)
    return tmp_path, [tmp_path / f'iter_{i}.pth' for i in (1, 2, 3)]


def cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def alter(path):
    """Flip one bit of one weight; torch.load would not notice."""
    content = bytearray(path.read_bytes())
    weight = read_checkpoint(path)['state_dict']['layer.weight']
    content[content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=False)


def empty(path):
    path.write_bytes(b'')


@pytest.mark.parametrize('harm', [cut, alter, empty, Path.unlink])
def test_damaged_latest_checkpoint(interrupted, capsys, harm):
    work_dir, (_, second, third) = interrupted
    harm(third)
    runner = train(work_dir, resume_from='auto')
    assert Path(runner._load_from) == second
    out = capsys.readouterr().out
    assert f'checkpoint {third} ' in out and 'Looking for another' in out
    assert runner.iter == EPOCHS * LENGTH


@pytest.mark.parametrize(
    'content', [None, '', '\0' * 40, 'elsewhere/iter_9.pth']
)
def test_damaged_pointer(interrupted, content):
    work_dir, (*_, third) = interrupted
    pointer = work_dir / 'last_checkpoint'
    pointer.unlink()
    if content is not None:
        pointer.write_text(content)
    runner = train(work_dir, resume_from='auto')
    assert Path(runner._load_from) == third


def test_no_good_checkpoint(interrupted):
    work_dir, paths = interrupted
    for path in paths:
        cut(path)
    with pytest.raises(CheckpointError, match='no checkpoint in .* can be'):
        train(work_dir, resume_from='auto')
    with pytest.raises(CheckpointError, match='iter_2.pth is truncated'):
        train(work_dir, resume_from=str(paths[1]))


@pytest.mark.parametrize('content', [dict(model={}, optimizer={}), dict()])
def test_only_weights(tmp_path, content):
    """As released files are; the best ones too."""
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='file.pth holds weights only'):
        train(tmp_path, resume_from=str(tmp_path / 'file.pth'))


def test_nothing_to_resume(interrupted, capsys, tmp_path_factory):
    """Then ``load_from`` is what it is without --resume."""
    weights = str(interrupted[1][0])
    work_dir = tmp_path_factory.mktemp('new')
    runner = train(work_dir, resume_from='auto', load_from=weights)
    assert 'Nothing to resume' in capsys.readouterr().out
    assert runner._load_from == weights and not runner._resume
    assert (work_dir / f'iter_{EPOCHS * LENGTH}.pth').is_file()


def test_resume_as_mmengine_says_it(interrupted):
    work_dir, (first, _, third) = interrupted
    for load_from, expected in ((None, third), (str(first), first)):
        runner = train(work_dir, resume=True, load_from=load_from)
        assert Path(runner._load_from) == expected and runner._resume
        third.unlink()


def test_restarts_with_a_named_checkpoint(interrupted, monkeypatch):
    """The run begins with it, whatever else is there, and goes on from what
    came of it: the same command never computes anything again.
    """
    work_dir, (first, second, _) = interrupted
    command = dict(resume_from=str(first))
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '2')
    for at, begin in ((1, first), (4, second)):
        runner = train(work_dir, die(at), error=Killed, **command)
        assert Path(runner._load_from) == begin
    runner = train(work_dir, **command)
    assert Path(runner._load_from) == work_dir / 'iter_5.pth'
    # The same file, written in another way.
    monkeypatch.chdir(work_dir)
    runner = train(work_dir, resume_from='./iter_1.pth')
    assert Path(runner._load_from) == work_dir / f'iter_{EPOCHS * LENGTH}.pth'
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '0')
    runner = train(work_dir, **command)
    assert Path(runner._load_from) == first


def test_what_a_sharded_run_begins_with(
    interrupted, monkeypatch, tmp_path_factory
):
    """The latest good checkpoint; ``load_from`` if there is none."""
    work_dir, (first, second, third) = interrupted
    begun = []

    def from_cfg(cfg):
        begun.append((cfg.resume, cfg.load_from))
        raise Killed

    monkeypatch.setattr(FlexibleRunner, 'from_cfg', from_cfg)
    monkeypatch.setattr(
        'vcmamba_mm.training.runner.adapt_to_cpu', lambda cfg: None
    )
    cut(third)
    new = tmp_path_factory.mktemp('new')
    for folder, resume_from in (
        (work_dir, 'auto'),
        (work_dir, str(first)),
        (new, 'auto'),
        (work_dir, None),
    ):
        cfg = config(
            folder,
            launcher='pytorch',
            strategy=dict(type='FSDP2Strategy'),
            custom_hooks=[],
            load_from='weights.pth',
            resume_from=resume_from,
        )
        with pytest.raises(Killed):
            build_runner(cfg, 'train')
    assert begun == [
        (True, str(second)),
        (True, str(first)),
        (False, 'weights.pth'),
        (False, 'weights.pth'),
    ]


def test_seed_of_the_interrupted_run(interrupted, capsys):
    runner = train(interrupted[0], resume_from='auto', randomness=dict(seed=6))
    assert runner.seed == 4
    assert 'The seed is 4' in capsys.readouterr().out


def test_other_number_of_iterations(interrupted):
    work_dir, (_, second, third) = interrupted
    other = {'train_dataloader.batch_size': 2}  # 5 iterations instead of 3
    with pytest.raises(ResumeError, match='had 3 iterations .* has 5 now'):
        train(work_dir, resume_from=str(second), **other)
    runner = train(work_dir, resume_from=str(third), **other)
    assert runner.iter == EPOCHS * 5
    read = runner.train_dataloader.dataset.read
    assert len(read) == (EPOCHS - 1) * SAMPLES


def test_stock_loop_begins_with_whole_epochs(interrupted):
    """It would repeat the epoch, while iterations and schedule go on."""
    work_dir, paths = interrupted  # the third is at the end of an epoch, but
    for iteration, path in enumerate(paths, 1):  # says that it was within
        runner = train(
            work_dir,
            resume_from=str(path),
            error=ResumeError,
            **{'train_cfg.type': 'EpochBasedTrainLoop'},
        )
        assert f'within an epoch, after iteration {iteration},' in runner.error
        assert not runner.train_dataloader.dataset.read


def test_stock_loop_goes_on_after_an_epoch(tmp_path):
    stock = {**BY_EPOCH, 'train_cfg.type': 'EpochBasedTrainLoop'}
    train(tmp_path, die(LENGTH + 1), error=Killed, **stock)
    # also with another number of iterations
    other = {'train_dataloader.batch_size': 2, **stock}
    runner = train(tmp_path, resume_from='auto', **other)
    read = runner.train_dataloader.dataset.read
    assert len(read) == (EPOCHS - 1) * SAMPLES


# ------------------------------------------------------------- the full disk


@pytest.fixture
def _no_limit_afterwards():
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.usefixtures('_no_limit_afterwards')
def test_full_disk(tmp_path):
    kept = {'default_hooks.checkpoint.max_keep_ckpts': 1}
    hook = dict(type='FullDiskHook', at=3, size=5000)
    runner = train(tmp_path, hook, error=files.WriteError, **kept)
    assert 'iter_4.pth cannot be written (File too large' in runner.error
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_3.pth')
    assert [p.name for p in tmp_path.glob('iter*')] == ['iter_3.pth']
    assert read_checkpoint(tmp_path / 'iter_3.pth')['meta']['iter'] == 3
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize(
    'error, message',
    [
        (OSError(errno.ENOSPC, 'No space left'), '(No space left, 1.0 MB): '),
        (OSError(errno.EDQUOT, 'Quota exceeded'), '(Quota exceeded, '),
        (PermissionError(errno.EACCES, 'Permission denied'), '(Permission '),
        (OSError(errno.EROFS, 'Read-only file system'), '(Read-only '),
        (OSError('of a plugin'), '(of a plugin, 1.0 MB): '),
    ],
)
def test_what_helps_is_said_where_it_does(
    tmp_path, monkeypatch, error, message
):
    def failing(*args):
        raise error

    monkeypatch.setattr(files.os, 'replace', failing)
    with pytest.raises(files.WriteError) as caught:
        files.write_file(bytes(10**6), tmp_path / 'file')
    text = str(caught.value)
    assert message in text
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    assert ('Make room' in text and '--resume' in text) == full
    assert not list(tmp_path.iterdir())


def test_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        function = getattr(os, name)

        def traced(*args, name=name, function=function):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(files.os, name, traced)
    files.write_file(b'content', tmp_path / 'file')
    assert calls == ['fsync', 'replace']
    assert (tmp_path / 'file').read_bytes() == b'content'


# ------------------------------------------------------------- not a number


def test_nan_stops_before_the_weights_change(tmp_path):
    runner = train(
        tmp_path, dict(type='PoisonHook', at=[4]), error=NonFiniteError
    )
    assert 'gradients are NaN or infinite at iteration 5' in runner.error
    assert '--resume' in runner.error
    last = (tmp_path / 'last_checkpoint').read_text()
    saved = read_checkpoint(last)
    assert last.endswith('iter_4.pth')
    raw = saved['ema_state_dict']
    for name, value in runner.model.named_parameters():
        assert torch.equal(value, raw[f'module.{name}'])


@pytest.mark.parametrize(
    'clip_grad',
    [dict(max_norm=0.1), dict(type='value', clip_value=0.1)],
    ids=['norm', 'value'],
)
def test_nan_with_clipped_gradients(tmp_path, clip_grad):
    """Of those clipped by value MMEngine logs no norm, and what a run before
    logged is not theirs.
    """
    train(tmp_path, die(2), error=Killed)
    assert (
        'train/grad_norm'
        in (
            read_checkpoint(tmp_path / 'iter_3.pth')['message_hub'][
                'log_scalars'
            ]
        )
    )
    for settings in ({}, dict(resume_from='auto')):
        runner = train(
            tmp_path if settings else tmp_path / 'new',
            dict(type='PoisonHook', at=[4]),
            error=NonFiniteError,
            **{'optim_wrapper.clip_grad': clip_grad, **settings},
        )
        assert 'gradients are NaN or infinite at iteration 5' in runner.error


SKIP = {'default_hooks.check_finite.action': 'skip'}


@pytest.mark.parametrize('counts', [1, 2])
def test_nan_is_skipped(tmp_path, counts):
    """Nothing of iteration 5, or of those summed up with it, is left."""
    settings = {**SKIP, 'optim_wrapper.accumulative_counts': counts}
    train(tmp_path, dict(type='PoisonHook', at=[4]), **settings)
    before, after, end = (
        {'optimizer': saved['optimizer']['state'], **saved['ema_state_dict']}
        for saved in (
            read_checkpoint(tmp_path / f'iter_{i}.pth')
            for i in (4, 4 + counts, 9)
        )
    )
    assert list(differences(before, after)) == ['/steps']  # of the average
    assert len(list(differences(after, end))) > 7
    assert all(v.isfinite().all() for k, v in end.items() if k != 'optimizer')


def test_too_many_are_skipped(tmp_path):
    settings = {**SKIP, 'default_hooks.check_finite.max_skips': 2}
    hook = dict(type='PoisonHook', at=[1, 3, 4, 6, 7, 8])
    runner = train(tmp_path, hook, error=NonFiniteError, **settings)
    assert 'at iteration 9 (3 in a row)' in runner.error


def test_scaler_that_skips_by_itself(tmp_path, monkeypatch):
    """With fp16 the optimizer is not called; the loss shows it."""
    monkeypatch.setattr(
        'mmengine.optim.OptimWrapper.step', lambda self, **kwargs: None
    )
    hook = dict(type='PoisonHook', at=[4])
    runner = train(tmp_path, hook, error=NonFiniteError)
    assert 'the loss is NaN or infinite at iteration 5' in runner.error


def test_nan_is_not_saved(tmp_path):
    runner = train(tmp_path, die(3), error=Killed)
    runner.model.norm.running_mean[0] = torch.inf
    with pytest.raises(NonFiniteError, match='norm.running_mean is NaN'):
        runner.save_checkpoint(str(tmp_path), 'iter_4.pth')
    assert read_checkpoint(tmp_path / 'iter_4.pth')['meta']['iter'] == 4


def test_unknown_action(tmp_path):
    with pytest.raises(ValueError, match="'stop' or 'skip', got 'ignore'"):
        train(tmp_path, **{'default_hooks.check_finite.action': 'ignore'})


# --------------------------------------------------- seeds and data workers


def test_seed_of_every_process_and_iteration(monkeypatch):
    draws = set()
    for rank, iteration in itertools.product((0, 1), (0, 1, 10**6)):
        monkeypatch.setattr(
            'vcmamba_mm.training.hooks.get_rank', lambda r=rank: r
        )
        runner = type('', (), dict(seed=5, iter=iteration))
        values = []
        for _ in range(2):
            IterSeedHook().before_train_iter(runner, 0)
            values.append(
                (random.random(), np.random.rand(), torch.rand(()).item())
            )
        assert values[0] == values[1]
        draws.update(values[0])
    assert len(draws) == 2 * 3 * 3


@pytest.mark.parametrize(
    'fault, message',
    [
        ('hang', 'DataLoader timed out after 2 seconds: the storage is'),
        ('die', ': something killed a data worker'),
    ],
)
def test_data_worker(tmp_path, fault, message):
    settings = {
        'train_dataloader.num_workers': 1,
        'train_dataloader.timeout': 2,
        'train_dataloader.dataset.fault': fault,
    }
    runner = train(tmp_path, error=ProcessError, **settings)
    assert message in runner.error and '--resume' in runner.error


@pytest.mark.parametrize(
    'error, message',
    [
        (AssertionError(), 'optim_wrapper: AssertionError'),
        (KeyError('AdmaW is unknown'), 'optim_wrapper: AdmaW is unknown'),
        (KeyError(), 'optim_wrapper: KeyError'),
        (ValueError('two\n  lines'), 'optim_wrapper: two lines'),
    ],
)
def test_wrong_setting_is_said_in_one_line(
    tmp_path, monkeypatch, error, message
):
    def failing(self, optim_wrapper):
        raise error

    monkeypatch.setattr(Runner, 'build_optim_wrapper', failing)
    assert train(tmp_path, error=SettingError).error == message


def test_workers_have_a_time_limit(tmp_path):
    cfg = config(tmp_path)
    loader = SafeRunner.build_dataloader(cfg.train_dataloader)
    assert loader.timeout == 0  # PyTorch wants no other without workers
    cfg.train_dataloader.num_workers = 1
    assert SafeRunner.build_dataloader(cfg.train_dataloader).timeout == 300


def test_loop_from_the_start_wants_batches_only():
    """Tools that simulate a training have no sampler."""
    loop = SimpleNamespace(dataloader=[3, 4])
    assert list(ResumableEpochLoop._batches(loop, 0)) == [3, 4]
