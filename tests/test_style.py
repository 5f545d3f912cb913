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


def test_imports_point_down():
    """tools -> classification, engine -> models, datasets -> ..., ops."""
    package = ROOT / 'vcmamba_mm'
    above = {
        'ops': (
            'models',
            'classification',
            'checkpoint',
            'engine',
            'mmcv',
            'mmengine',
            'mmpretrain',
            'mmseg',
        ),
        'models': ('classification', 'engine', 'mmpretrain', 'mmseg'),
        'datasets': (
            'models',
            'ops',
            'classification',
            'engine',
            'mmpretrain',
            'mmseg',
        ),
        'analysis': ('classification', 'demo', 'engine', 'mmpretrain'),
        'deploy': ('analysis', 'classification', 'demo', 'engine'),
        'classification': ('analysis', 'demo', 'deploy', 'engine', 'mmseg'),
    }
    for room, names in above.items():
        files = list((package / room).glob('*.py'))
        assert files
        for file in files:
            for line in file.read_text().splitlines():
                if line.lstrip().startswith(('import ', 'from ')):
                    words = line.replace('.', ' ').split()
                    assert not set(words) & set(names), f'{file}: {line}'
