import re

from vcmamba_mm import __version__, doctor
from vcmamba_mm.ops.scan import BACKENDS


def test_says_what_works(run):
    out = run('python', '-m', 'vcmamba_mm.doctor', TRITON_INTERPRET='0').stdout
    assert f'vcmamba_mm: {__version__}' in out
    assert re.search(r'mmengine: \S+ \d+\.\d+', out)
    assert re.search(r'PyTorch: \d+\.\d+', out)
    for name in BACKENDS:
        assert f'scan backend {name}: ' in out
    assert re.search(
        r'scan backend torch: works on cpu, largest error \d', out
    )
    assert 'scan backend mamba_ssm: mamba-ssm' in out
    assert 'WRONG' not in out and 'WARNING' not in out


def test_wrong_results_and_mixed_stacks_are_shown(monkeypatch, capsys):
    scan = doctor.multi_directional_scan
    monkeypatch.setattr(
        doctor,
        'multi_directional_scan',
        lambda *args, backend: (
            scan(*args, backend=backend) + (backend == 'torch')
        ),
    )
    assert doctor.check_backend('torch', 'cpu').startswith('WRONG RESULT')
    monkeypatch.setattr(
        doctor,
        'distributions',
        lambda: dict(mmengine='onedl-mmengine 0.10', mmcv='mmcv 2.1'),
    )
    monkeypatch.setattr(doctor, 'available_backends', dict)
    doctor.main()
    assert 'WARNING: onedl' in capsys.readouterr().out


def test_a_failing_backend_is_shown(monkeypatch):
    scan = doctor.multi_directional_scan

    def broken(*args, backend):
        if backend == 'torch':
            raise RuntimeError('no kernel image')
        return scan(*args, backend=backend)

    monkeypatch.setattr(doctor, 'multi_directional_scan', broken)
    assert doctor.check_backend('torch', 'cpu') == (
        'fails on cpu: no kernel image'
    )
