"""Training in processes of its own, that can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from conftest import QUICK, ROOT
from PIL import Image

HERE = Path(__file__).parent


def make_pictures(root: Path) -> Path:
    """Noise in folders of four classes, 64 pictures."""
    rng = np.random.default_rng(0)
    for label in range(4):
        for i in range(16):
            path = root / 'train' / str(label) / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    return root


def wait_for(condition: Callable, seconds: float):
    """Wait until a condition holds; return what it returned."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f'not within {seconds} s'
        time.sleep(0.02)
    return value


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    try:
        tasks = Path(f'/proc/{pid}/task')
        lists = [(task / 'children').read_text() for task in tasks.iterdir()]
    except OSError:  # it has ended
        return []
    return [int(child) for text in lists for child in text.split()]


def descendants(pid: int) -> list[int]:
    return [p for child in children(pid) for p in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
    except OSError:
        return False
    return state.split()[0] not in 'ZX'  # ended, not yet waited for


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Training:
    """``tools/dist_train.sh --resume`` on CPUs.

    Args:
        work_dir: Its work dir; what it prints goes to a file beside.
        data: From :func:`make_pictures`.
        options: More for ``--cfg-options``.
        config: The config, in this folder.
        processes: Their number.
        before: Words before the command, say a shell that limits it.
    """

    def __init__(
        self,
        work_dir: Path,
        data: Path,
        *options: str,
        config: str = 'tiny_run.py',
        processes: int = 2,
        before: tuple[str, ...] = (),
    ) -> None:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.log_file = work_dir.with_suffix(f'.{port}.log')
        python = Path(sys.executable).parent
        with open(self.log_file, 'w') as log:
            self.process = subprocess.Popen(
                [
                    *before,
                    str(ROOT / 'tools/dist_train.sh'),
                    str(HERE / config),
                    str(processes),
                    f'--work-dir={work_dir}',
                    '--resume',
                    '--cfg-options',
                    f'train_dataloader.dataset.data_root={data}',
                    f'val_dataloader.dataset.data_root={data}',
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    'PYTHONPATH': f'{ROOT}:{HERE}:{QUICK}',
                    'PATH': f'{python}:{os.environ["PATH"]}',
                    'CUDA_VISIBLE_DEVICES': '',
                    'OMP_NUM_THREADS': '1',
                    'PORT': str(port),
                },
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [li for li in self.log.splitlines() if li.startswith('error:')]

    def iterations(self) -> int:
        """How many iterations it has said to have done."""
        return self.log.count('Epoch(train)')

    def workers(self) -> list[int]:
        """Its training processes, in the order of their ranks."""
        return [p for p in children(self.pid) if is_alive(p)]

    def wait(self, seconds: float = 120) -> int:
        """Wait until it and all that it started have ended."""
        everyone = [self.pid, *descendants(self.pid)]
        code = self.process.wait(seconds)
        wait_for(lambda: not any(map(is_alive, everyone)), 30)
        return code

    def kill(self) -> None:
        """End it and all that it started."""
        for pid in (self.pid, *descendants(self.pid)):
            kill(pid)
        self.process.wait()
