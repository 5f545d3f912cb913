"""Runs of two processes that are killed at random moments, and go on."""

import json
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from launch import (
    Training,
    children,
    descendants,
    kill,
    make_pictures,
    wait_for,
)

from vcmamba_mm.checkpoints import read_checkpoint

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.faults

KILLS = 20
ITERATIONS = 240  # of tiny_run.py
# Who dies. What is left of the run has to end by itself.
VICTIMS = ('rank 0', 'rank 1', 'data worker', 'torchrun', 'all')

# Measured, so never the same.
TIMES = ('time', 'data_time', 'images_per_second', 'tflops')


def records(work_dir: Path) -> dict[tuple, list[dict]]:
    """What the visualizer wrote: loss and learning rate, accuracy, by step."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut off by the kill
                continue
            for name in TIMES:
                record.pop(name, None)
            kind = 'loss' if 'loss' in record else 'accuracy'
            found.setdefault((kind, record['step']), []).append(record)
    return found


def contents(work_dir: Path) -> dict[str, dict]:
    """All the checkpoints, but for what tells the time."""
    found = {}
    for path in work_dir.glob('*.pth'):
        found[path.name] = read_checkpoint(path)
        del found[path.name]['meta'], found[path.name]['message_hub']
    return found


def assert_same(left: object, right: object, name: str = '') -> None:
    """Every bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), name
        for key in left:
            assert_same(left[key], right[key], f'{name}/{key}')
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), name
        for i, pair in enumerate(zip(left, right)):
            assert_same(*pair, f'{name}/{i}')
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), name
    else:
        assert left == right, name


def strike(training: Training, victim: str) -> str:
    """Kill -9; return who it was, for some may not be there yet."""
    workers = training.workers()
    if victim == 'all':
        targets = [training.pid, *descendants(training.pid)]
    elif victim.startswith('rank') and len(workers) == 2:
        targets = [workers[int(victim[-1])]]
    elif victim == 'data worker' and workers and children(workers[0]):
        targets = children(workers[0])[:1]
    else:
        victim = 'torchrun'
        targets = [training.pid]
    for pid in targets:
        kill(pid)
    return victim


def check_end(training: Training, victim: str) -> None:
    """Who is left ends, with a line that says who died."""
    code = training.wait()
    if victim in ('torchrun', 'all'):
        assert code == -signal.SIGKILL, training.log[-3000:]
    elif victim == 'data worker':
        assert code == 2, training.log[-3000:]
        assert any('killed a data worker' in li for li in training.errors)
    else:
        assert code == 128 + signal.SIGKILL, training.log[-3000:]
        assert re.match(
            f'error: process {victim[-1]} .* was killed by SIGKILL first',
            training.errors[-1],
        )


def latest(work_dir: Path) -> Path | None:
    pointer = work_dir / 'last_checkpoint'
    return Path(pointer.read_text()) if pointer.exists() else None


def test_killed_at_random_moments(tmp_path):
    """After 20 kills everything is, bit by bit, as without any."""
    data = make_pictures(tmp_path / 'data')
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'

    def train(work_dir):
        return Training(work_dir, data, 'randomness.seed=0')

    begin = time.monotonic()
    training = train(whole)
    wait_for(training.iterations, 120)
    start_up = time.monotonic() - begin
    assert training.wait(300) == 0, training.log[-3000:]

    dice = random.Random(0)
    victims = [VICTIMS[i % len(VICTIMS)] for i in range(KILLS)]
    dice.shuffle(victims)
    at, damaged, cut = 0, None, b''
    for number, victim in enumerate(victims, 1):
        training = train(killed)
        if number % 5 == 0:  # while it starts
            pause = dice.uniform(0, start_up)
            moment = f'{pause:.1f} s after its start'
        else:  # while it trains, validates, saves
            count = dice.randint(1, 14)
            wait_for(lambda t=training, n=count: t.iterations() >= n, 120)
            pause = dice.uniform(0, 0.1)
            moment = f'{1000 * pause:.0f} ms after {count} iterations'
        time.sleep(pause)
        assert training.process.poll() is None, training.log[-3000:]
        victim = strike(training, victim)
        check_end(training, victim)
        if at and training.iterations():
            assert f', iter: {at}\n' in training.log
        newest = latest(killed)
        # A run that has not saved where that one was leaves it as it is.
        if damaged and damaged.exists() and damaged.read_bytes() == cut:
            damaged.unlink()
        contents(killed)  # all can be read
        if newest is not None:
            assert read_checkpoint(newest)['meta']['iter'] >= at
            at = read_checkpoint(newest)['meta']['iter']
        sys.stdout.write(
            f'kill {number}: {victim}, {moment}; {at} iterations saved\n'
        )
        if number == KILLS // 2:
            damaged, cut = newest, newest.read_bytes()[:-1000]
            damaged.write_bytes(cut)
            at = 0
    training = train(killed)
    assert training.wait(300) == 0, training.log[-3000:]

    expected, found = records(whole), records(killed)
    assert len([key for key in expected if key[0] == 'loss']) == ITERATIONS
    assert found.keys() == expected.keys()
    for key, values in found.items():
        # Some twice: in the run that was killed and in the next.
        for value in values:
            assert_same(value, expected[key][0], str(key))
    assert_same(contents(killed), contents(whole))
    assert not list(killed.glob('.*'))


def test_three_processes(tmp_path):
    """Where the order of sums matters, it has to be the same."""
    data = make_pictures(tmp_path / 'data')
    options = (
        'randomness.seed=0',
        'train_cfg.max_epochs=3',
        'find_unused_parameters=True',
    )
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    training = Training(whole, data, *options, processes=3)
    assert training.wait(300) == 0, training.log[-3000:]
    training = Training(killed, data, *options, processes=3)
    wait_for(lambda: training.iterations() >= 9, 120)
    training.kill()
    training = Training(killed, data, *options, processes=3)
    assert training.wait(300) == 0, training.log[-3000:]
    assert 'resumed epoch' in training.log
    assert_same(contents(killed), contents(whole))
