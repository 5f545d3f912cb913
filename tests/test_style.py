import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize('command', [('check',), ('format', '--check')])
def test_ruff(command):
    process = subprocess.run(
        [sys.executable, '-m', 'ruff', *command, '.'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_shell_scripts_parse():
    scripts = [
        *(ROOT / 'tools').glob('*.sh'),
        ROOT / 'docs/pictures/draw.sh',
        ROOT / '.ci/run',
    ]
    assert len(scripts) >= 7
    for script in scripts:
        subprocess.run(['bash', '-n', script], check=True)
        assert script.stat().st_mode & 0o100, f'{script} is not executable'
