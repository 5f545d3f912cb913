"""The scripts that start tools/ in several processes."""

import os
import re
import sys
from pathlib import Path

import pytest


@pytest.fixture
def slurm(tmp_path):
    """Programs that do for one machine what slurm's do for two."""
    folder = tmp_path / 'slurm'
    folder.mkdir()
    (folder / 'srun').write_text(
        """#!/usr/bin/env bash
        while [[ $1 == --* ]]; do
            echo "srun option $1"
            shift
        done
        export SLURM_JOB_ID=$$ SLURM_STEP_NODELIST='node[1-2]'
        SLURM_NODEID=1 "$@" &
        SLURM_NODEID=0 "$@"
        wait -n
        """
    )
    (folder / 'scontrol').write_text(
        """#!/usr/bin/env bash
        [[ $* == 'show hostnames node[1-2]' ]] && echo 127.0.0.1 && echo node2
        """
    )
    for program in folder.iterdir():
        program.chmod(0o755)
    python = Path(sys.executable).parent
    return dict(
        PATH=f'{folder}:{python}:{os.environ["PATH"]}',
        GPUS='2',
        GPUS_PER_NODE='1',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--qos=high --time=1:00',
    )


# In place of train.py, which test_train_and_test.py runs in two processes.
MEET = """
import sys
import torch.distributed as dist
dist.init_process_group('gloo')
print(f'{dist.get_rank()} of {dist.get_world_size()}: {sys.argv[1:]}')
"""


def test_slurm(run, slurm, tmp_path):
    """Processes of both machines meet, with the arguments."""
    meet, python = tmp_path / 'meet.py', tmp_path / 'slurm/python'
    meet.write_text(MEET)
    python.write_text(
        '#!/usr/bin/env bash\n'
        f'exec {sys.executable} "${{@/%*tools\\/train.py/{meet}}}"\n'
    )
    python.chmod(0o755)
    args = ['config.py', '--work-dir', str(tmp_path / 'a b'), '--no-validate']
    log = run('tools/slurm_train.sh', 'partition', 'job', *args, **slurm)
    log = log.stdout
    options = re.findall('srun option (.*)', log)
    assert options == [
        '--partition=partition',
        '--job-name=job',
        '--gres=gpu:1',
        '--nodes=2',
        '--ntasks-per-node=1',
        '--cpus-per-task=3',
        '--kill-on-bad-exit=1',
        '--qos=high',
        '--time=1:00',
    ]
    for rank in (0, 1):
        assert f'{rank} of 2: {[*args, "--launcher", "pytorch"]}' in log


def test_slurm_tests_as_it_trains(run, slurm, tmp_path):
    """What each machine would start, but for the tool and its arguments."""
    python = tmp_path / 'slurm/python'
    # A line at once: there are two machines.
    python.write_text('#!/usr/bin/env bash\necho "$(printf "<%s>" "$@")"\n')
    python.chmod(0o755)

    def started(tool, *args):
        job = ('partition', 'job', 'a b.py', *args)
        log = run(f'tools/slurm_{tool}.sh', *job, PORT='29615', **slurm).stdout
        return sorted(log.splitlines())

    trained, tested = started('train'), started('test', 'a.pth', '--tta')
    assert sum('<--nnodes=2>' in line for line in trained) == 2
    assert tested == [
        line.replace('/train.py><a b.py>', '/test.py><a b.py><a.pth><--tta>')
        for line in trained
    ]


def test_slurm_wants_whole_machines(run):
    process = run(
        'tools/slurm_train.sh',
        *('partition', 'job', 'config.py'),
        check=False,
        GPUS='12',
    )
    assert process.returncode == 2
    assert 'GPUS (12) must be a multiple of' in process.stderr


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh']
)
def test_launchers_explain_themselves(run, script):
    process = run(f'tools/{script}', 'config.py', check=False)
    assert process.returncode == 2
    assert process.stderr.startswith(f'error: usage: tools/{script} ')
    assert f'usage: tools/{script} ' in run(f'tools/{script}', '--help').stdout
    if script == 'dist_train.sh':
        process = run(f'tools/{script}', 'config.py', 'two', check=False)
        assert process.returncode == 2
        assert "positive number, got 'two'" in process.stderr
