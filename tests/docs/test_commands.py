"""Every command and example of README and docs, followed one after another.

A page is followed from top to bottom in a copy of the repository (see
sandbox.py): commands in ```bash blocks and in `python ...` spans are given to
bash, ```python blocks are run as programs if they begin with an import and
are otherwise configs to train with.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from sandbox import environment, make_sandbox

PAGES = (
    'README.md',
    *sorted(f'docs/{p.name}' for p in ROOT.glob('docs/*.md')),
)
SECONDS = 480  # after these a command hangs
TRACEBACK = 'Traceback (most recent call last)'

# What is written in the docs, and what is done here instead.
SUBSTITUTIONS = (
    # Trainings are short, see sandbox.py.
    (r'\bepoch_\d+\.pth', 'epoch_1.pth'),
    (r'\biter_\d+\.pth', 'iter_2.pth'),
    # So are stages.
    (r'--block 4 8\b', '--block 1 2'),
    # And pictures.
    (r'--pixel 112 60\b', '--pixel 40 20'),
    # Two processes in place of eight, or one on each of two machines, which
    # are this one.
    (r'(?s)(NODE_RANK=.*\.py) 8\b', r'\1 1'),
    (r'(\.py|\.pth|CHECKPOINT|CONFIG) 8\b', r'\1 2'),
    (r'\b10\.0\.0\.1\b', '127.0.0.1'),
    (r'GPUS=16', 'GPUS=2 GPUS_PER_NODE=1'),
    # Words in capitals.
    (r'\bCHECKPOINT\b', lambda match: checkpoint_for(match.string)),
    (r'\bCONFIG\b', 'configs/vcmamba_b_8xb128_in1k.py'),
    (r'\bPARTITION JOB\b', 'gpu vcmamba'),
    (r'\bSHARDS\b', 'data/webdataset'),
)

# Commands that are not followed, and why.
LEFT_OUT = {
    r'pip install|MMCV_WITH_OPS|cp requirements/': 'changes the environment; '
    '.ci/run installs what it needs',
    r'make test(-\w+)?\b|python -m pytest': 'the tests themselves',
    r'make gpu\b': 'needs a GPU',
    r'make (docs|lint)\b': 'tests/test_docs.py and tests/test_style.py do it',
    r'(?s).*(pip download|mmdet|onedl_mmcv|detection/|_coco)': 'needs '
    'mmdet and compiled mmcv: tests/configs/test_detection.py has both',
    r'make benchmark\b|python benchmarks/(model|published|families)\.py': (
        'takes long; tests/benchmarks/ has them with small models'
    ),
}

# What python blocks continue that are neither programs nor whole configs.
BASE = 'configs/vcmamba_s_8xb128_in1k.py'


class Command(NamedTuple):
    line: int
    language: str
    text: str


def commands_of(text: str) -> list[Command]:
    """List what a page tells to do, in its order."""
    found = []
    for match in re.finditer(
        r'^ *```(bash|python)\n(.*?)^ *```$|`(python [^`\n]+)`',
        text,
        re.M | re.S,
    ):
        language, block, span = match.groups()
        block = textwrap.dedent(block or '')
        line = text.count('\n', 0, match.start()) + 1
        if span:
            found.append(Command(line, 'bash', span))
        elif language == 'python':
            found.append(Command(line, 'python', block))
        else:
            for command in re.split(r'(?<!\\)\n', block):
                line += 1
                if command.strip() and not command.startswith('#'):
                    found.append(Command(line, 'bash', command))
                line += command.count('\n')
    return found


def checkpoint_for(command: str) -> str:
    """The checkpoint of the config that a command names."""
    config = re.search(r'\w+_\d+xb\w+', command)[0]
    return f'trained/{config}.pth'


def substituted(text: str) -> str:
    for old, new in SUBSTITUTIONS:
        text = re.sub(old, new, text)
    return text


def reason_to_leave_out(command: Command) -> str | None:
    for pattern, reason in LEFT_OUT.items():
        if re.match(pattern, command.text):
            return reason
    return None


def outputs(text: str) -> list[str]:
    """Files and folders that a command names as what it writes."""
    words = shlex.split(text, comments=True)
    options = ('--out', '--show-dir', '--work-dir')
    return [b for a, b in pairwise(words) if a in options]


def write_block(root: Path, text: str) -> str:
    """Save a python block; return the command to run it, or train with it.

    It is called what its first line says, if that is a comment.
    """
    name = re.match(r'# (\w+\.py)\n', text)
    path = root / (name[1] if name else 'block.py')
    if re.match(r'(#.*\n)*(import|from) ', text):
        path.write_text(text)
        return f'python {path.name}'
    if '_base_' not in text:
        text = f'_base_ = {BASE!r}\n{text}'
    path.write_text(text)
    return f'python tools/train.py {path.name}'


COMMANDS = {page: commands_of((ROOT / page).read_text()) for page in PAGES}


@pytest.fixture(scope='module')
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('template') / 'sandbox'
    root.mkdir()
    make_sandbox(root)
    return root


def follow(text: str, root: Path, port: int) -> str | None:
    """Run a shell command; say what is wrong, or None."""
    # Both machines of a pair, for each waits for the other.
    texts = [text]
    if 'NODE_RANK=' in text:
        texts = [re.sub('NODE_RANK=.', f'NODE_RANK={i}', text) for i in (0, 1)]
    logs = [root / f'command_{i}.log' for i in range(len(texts))]
    processes = []
    for command, log in zip(texts, logs):
        with log.open('w') as file:
            process = subprocess.Popen(
                ['bash', '-euo', 'pipefail', '-c', command],
                cwd=root,
                env=dict(environment(root), PORT=str(port)),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.append(process)
    try:
        for process, log in zip(processes, logs):
            code, said = process.wait(SECONDS), log.read_text()
            if code or TRACEBACK in said:
                return f'exit code {code}\n{said[-4000:]}'
    except subprocess.TimeoutExpired:
        return f'not done after {SECONDS} s'
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    # Some complete the name.
    missing = [p for p in outputs(text) if not list(root.glob(f'{p}*'))]
    return f'did not write {missing}' if missing else None


@pytest.fixture
def sandbox(template, tmp_path) -> Iterator[Path]:
    root = tmp_path / 'sandbox'
    shutil.copytree(template, root)
    yield root
    shutil.rmtree(root)  # hundreds of MB


@pytest.mark.docs
@pytest.mark.parametrize('page', PAGES)
def test_page(page, sandbox):
    # Pages are followed at the same time.
    port = 29700 + PAGES.index(page)
    wrong = []
    for command in COMMANDS[page]:
        if reason_to_leave_out(command):
            continue
        text = substituted(command.text)
        if command.language == 'python':
            text = write_block(sandbox, text)
        problem = follow(text, sandbox, port)
        if problem:
            wrong.append(f'{page}:{command.line}: {text}\n{problem}\n')
    if wrong:
        pytest.fail('\n'.join(wrong), pytrace=False)


def all_bash() -> list[str]:
    return [
        command.text
        for page in PAGES
        for command in COMMANDS[page]
        if command.language == 'bash'
    ]


@pytest.mark.parametrize('pattern', LEFT_OUT)
def test_what_is_left_out_is_there(pattern):
    assert any(re.match(pattern, text) for text in all_bash())


@pytest.mark.parametrize('pattern', [old for old, _ in SUBSTITUTIONS])
def test_what_is_substituted_is_there(pattern):
    assert any(re.search(pattern, text) for text in all_bash())


def test_block_by_block():
    page = (
        'text `python a.py\nb` and `python -m b`\n'
        '```bash\n# why\nA=1 \\\n    run x  # how\nrun y\n```\n'
        '```python\nimport a\nb()\n```\n```text\nno\n```\n'
    )
    assert commands_of(page) == [
        (2, 'bash', 'python -m b'),
        (5, 'bash', 'A=1 \\\n    run x  # how'),
        (7, 'bash', 'run y'),
        (9, 'python', 'import a\nb()\n'),
    ]
