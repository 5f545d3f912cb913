"""What a run does about full disks, NaN, workers that die, wrong settings."""

import errno
import itertools
import multiprocessing.queues
import os
import random
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import FlexibleRunner, Runner
from toy_runs import (
    Killed,
    config,
    die,
    differences,
    train,
)

from vcmamba_mm import files
from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.training.errors import ProcessError, SettingError
from vcmamba_mm.training.hooks import IterSeedHook, NonFiniteError
from vcmamba_mm.training.loops import ResumableEpochLoop
from vcmamba_mm.training.processes import deferred_signals, process_errors
from vcmamba_mm.training.runner import SafeRunner, ShardedRunner

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
    'runner, stock, loop, end',
    [
        (SafeRunner, Runner, 'train', '. Training goes on with --resume'),
        (SafeRunner, Runner, 'val', 'is their number'),
        (SafeRunner, Runner, 'test', 'is their number'),
        (
            ShardedRunner,
            FlexibleRunner,
            'train',
            '. Training goes on with --resume',
        ),
    ],
)
def test_dead_data_worker_is_said_in_every_loop(
    monkeypatch, runner, stock, loop, end
):
    def failing(self):
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal')

    monkeypatch.setattr(stock, loop, failing)
    with pytest.raises(ProcessError, match='killed a data worker') as caught:
        getattr(object.__new__(runner), loop)()
    assert str(caught.value).endswith(end)


@pytest.mark.parametrize('sigchld', [True, False])
def test_signals_are_handled_as_before(monkeypatch, sigchld):
    """After other errors; also where there is no SIGCHLD, as on Windows."""
    if not sigchld:
        monkeypatch.delattr(signal, 'SIGCHLD')
    numbers = [signal.SIGINT, getattr(signal, 'SIGCHLD', signal.SIGINT)]
    before = [signal.getsignal(number) for number in numbers]
    for guard in (deferred_signals(), process_errors()):
        with pytest.raises(ZeroDivisionError), guard:
            raise ZeroDivisionError
        assert [signal.getsignal(number) for number in numbers] == before


def test_data_worker_that_dies_while_it_hands_a_batch_over(
    tmp_path, monkeypatch
):
    """Before it counts as dead; that comes while the error is looked at."""
    before = signal.getsignal(signal.SIGCHLD)

    def dead(*_):
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal')

    def get(self, timeout):
        signal.signal(signal.SIGCHLD, dead)
        raise ConnectionResetError(errno.ECONNRESET, 'reset by peer')

    def message(error):
        signal.raise_signal(signal.SIGCHLD)
        return str(error)

    monkeypatch.setattr(multiprocessing.queues.Queue, 'get', get)
    monkeypatch.setattr('vcmamba_mm.training.processes.message', message)
    settings = {'train_dataloader.num_workers': 1}
    try:
        runner = train(tmp_path, error=ProcessError, **settings)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert 'reset by peer: something killed a data worker' in runner.error


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGCHLD])
def test_signal_while_a_checkpoint_is_written(tmp_path, monkeypatch, number):
    """It is whole, then the handler runs."""
    save_checkpoint, when = Runner.save_checkpoint, []

    def interrupted(*args, **kwargs):
        when.append('begin')
        signal.raise_signal(number)
        save_checkpoint(*args, **kwargs)
        when.append('end')

    def handler(*_):
        when.append('handler')
        raise Killed

    monkeypatch.setattr(
        SafeRunner,
        'load_or_resume',
        lambda self: signal.signal(number, handler),
    )
    monkeypatch.setattr(Runner, 'save_checkpoint', interrupted)
    before = signal.getsignal(number)
    try:
        train(tmp_path, error=Killed)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)
    assert when == ['begin', 'end', 'handler']
    assert read_checkpoint(tmp_path / 'iter_1.pth')['meta']['iter'] == 1


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
