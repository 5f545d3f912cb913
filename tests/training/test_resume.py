"""Interrupted and resumed runs, in this process, with a model of one layer."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import FlexibleRunner, Runner
from toy_runs import (
    BATCH,
    EPOCHS,
    LENGTH,
    SAMPLES,
    Killed,
    NoteHook,
    by_iterations,
    config,
    die,
    differences,
    train,
    what_is_left,
)

from vcmamba_mm import files
from vcmamba_mm.checkpoints import CheckpointError, read_checkpoint
from vcmamba_mm.training.loops import ResumeError
from vcmamba_mm.training.runner import build_runner

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
