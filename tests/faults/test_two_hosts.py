"""Two machines with addresses of their own, one of which is lost.

They are network namespaces joined by a cable (a veth pair). What they share is
the disk, as machines of a cluster do.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, QUICK, ROOT

from vcmamba_mm.checkpoints import read_checkpoint

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.faults

CONFIG = CONFIGS / 'tiny_plain.py'
EPOCHS = 20  # of 5 iterations
PORT = str(20000 + os.getpid() % 10000)
TIMEOUT = 240  # s, for what takes half a minute on an idle machine


def ip(*words):
    return subprocess.run(
        ['ip', *words], check=True, capture_output=True, text=True, timeout=30
    ).stdout


def train(log, *command, **env):
    with open(log, 'ab') as output:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                'PYTHONPATH': f'{ROOT}:{QUICK}',
                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                'CUDA_VISIBLE_DEVICES': '',
                'OMP_NUM_THREADS': '1',
                'MAX_RESTARTS': '3',
                **env,
            },
        )


@dataclass
class Host:
    """A network namespace and what runs in it."""

    name: str
    address: str
    rank: int

    def train(self, leader, log, *args):
        return train(
            log,
            *('ip', 'netns', 'exec', self.name),
            *('tools/dist_train.sh', *args),
            NNODES='2',
            NODE_RANK=str(self.rank),
            MASTER_ADDR=leader.address,
            LOCAL_ADDR=self.address,
            GLOO_SOCKET_IFNAME='eth0',
            # How long to look for what a lost machine never wrote.
            RDZV_CONF='read_timeout=20',
        )

    def cable(self, state):
        ip('-n', self.name, 'link', 'set', 'eth0', state)

    def kill(self):
        """Kill all its processes at once, as a power cut would."""
        pids = ip('netns', 'pids', self.name).split()
        for pid in map(int, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)


@pytest.fixture
def hosts():
    """Two hosts; the second has the lower address.

    torchrun numbers machines by address. So the first, where they meet, is not
    the one with the first process: each has something that the other needs.
    """
    if shutil.which('ip') is None:
        pytest.skip('needs iproute2')
    first, second = pair = [
        Host(f'vcm{os.getpid()}first', '10.77.0.2', 0),
        Host(f'vcm{os.getpid()}second', '10.77.0.1', 1),
    ]
    try:
        try:
            for host in pair:
                ip('netns', 'add', host.name)
                ip('-n', host.name, 'link', 'set', 'lo', 'up')
            ip(
                *('link', 'add', 'eth0', 'netns', first.name, 'type', 'veth'),
                *('peer', 'name', 'eth0', 'netns', second.name),
            )
            for host in pair:
                address = f'{host.address}/24'
                ip('-n', host.name, 'addr', 'add', address, 'dev', 'eth0')
                host.cable('up')
        except subprocess.CalledProcessError as error:
            pytest.skip(f'cannot make network namespaces: {error.stderr}')
        yield pair
    finally:
        existing = ip('netns', 'list').split()
        for host in pair:
            if host.name in existing:
                host.kill()
                ip('netns', 'del', host.name)


@pytest.fixture(scope='module')
def arguments(pictures):
    return [
        CONFIG,
        1,
        '--no-validate',
        '--cfg-options',
        f'train_dataloader.dataset.data_root={pictures}',
        f'train_cfg.max_epochs={EPOCHS}',
    ]


@pytest.fixture(scope='module')
def uninterrupted(run, arguments, tmp_path_factory):
    """Work dir of the same run by two processes of one machine."""
    work_dir = tmp_path_factory.mktemp('uninterrupted')
    config, _, *rest = arguments
    run(
        'tools/dist_train.sh',
        config,
        2,
        f'--work-dir={work_dir}',
        *rest,
        PORT=PORT,
    )
    return work_dir


def logged(work_dir):
    """What was logged at each iteration, by all the starts of a run."""
    lines = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in map(json.loads, path.read_text().splitlines()):
            lines.setdefault(line['step'], []).append(line)
    return lines


def same(one, other):
    """Whether two nested containers are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def wait_for(pattern, logs, processes):
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        text = ''.join(log.read_text() for log in logs)
        if re.search(pattern, text):
            return
        for process in processes:
            assert process.poll() is None, text[-3000:]
        time.sleep(0.1)
    pytest.fail(f'no {pattern!r} within {TIMEOUT} s: {text[-3000:]}')


def compare(work_dir, uninterrupted):
    """A run that was interrupted with one that was not."""
    assert len(list(work_dir.glob('*/vis_data'))) == 2  # starts
    lines = logged(work_dir)
    assert list(lines) == list(range(1, 5 * EPOCHS + 1))
    again = [step for step, of_step in lines.items() if len(of_step) > 1]
    # Since the last checkpoint, one for each epoch.
    assert len(again) <= 5 and (not again or again[0] % 5 == 1)
    for step, (line,) in logged(uninterrupted).items():
        assert lines[step][-1]['lr'] == line['lr']
    name = f'epoch_{EPOCHS}.pth'
    ended, expected = (
        read_checkpoint(folder / name) for folder in (work_dir, uninterrupted)
    )
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert same(ended[part], expected[part]), part


@pytest.mark.parametrize(
    'lost, unplugged',
    [
        pytest.param(1, 0, id='killed'),
        pytest.param(0, 0, id='killed where they meet'),
        # Nobody says that it is gone; torchrun finds out after 15 s.
        pytest.param(1, 20, id='vanished'),
    ],
)
def test_run_survives_the_loss_of_a_host(
    hosts, arguments, uninterrupted, tmp_path, lost, unplugged
):
    work_dir = tmp_path / 'work'
    logs = [tmp_path / 'first.log', tmp_path / 'second.log']

    def start(index):
        return hosts[index].train(
            hosts[0], logs[index], *arguments, f'--work-dir={work_dir}'
        )

    processes = [start(0), start(1)]
    wait_for(r'Epoch\(train\) +\[4\]\[3/5\]', logs, processes)
    if unplugged:
        hosts[lost].cable('down')
    assert hosts[lost].kill() >= 3  # the script, torchrun, a process
    assert processes[lost].wait(10) == -signal.SIGKILL
    time.sleep(max(unplugged, 2))
    if unplugged:
        hosts[lost].cable('up')
    processes[lost] = start(lost)
    for index, process in enumerate(processes):
        assert process.wait(TIMEOUT) == 0, logs[index].read_text()[-3000:]

    compare(work_dir, uninterrupted)


def test_run_survives_the_loss_of_a_process(
    arguments, uninterrupted, tmp_path
):
    """On one machine, by torchrun alone."""
    work_dir, log = tmp_path / 'work', tmp_path / 'log'
    config, _, *rest = arguments
    torchrun = train(
        log,
        *('tools/dist_train.sh', config, 2, *rest),
        f'--work-dir={work_dir}',
        PORT=PORT,
    )
    try:
        wait_for(r'Epoch\(train\) +\[4\]\[3/5\]', [log], [torchrun])
        children = Path(f'/proc/{torchrun.pid}/task/{torchrun.pid}/children')
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        assert torchrun.wait(TIMEOUT) == 0, log.read_text()[-3000:]
    finally:
        torchrun.terminate()
    compare(work_dir, uninterrupted)
