import importlib.util
import re
import sys

import pytest
from conftest import ROOT

from vcmamba_mm import __version__, doctor
from vcmamba_mm.ops.path_scan import BACKENDS


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
    assert re.search(r'mmseg.models: (can|cannot) be imported', out)
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


def test_parts_that_cannot_be_imported_are_shown(monkeypatch):
    def fail(error):
        def import_module(name):
            raise error

        monkeypatch.setattr(doctor, 'import_module', import_module)

    fail(ModuleNotFoundError("No module named 'mmcv._ext'"))
    assert doctor.check_part('mmseg.models') == (
        "cannot be imported (No module named 'mmcv._ext'), no segmentation "
        'here: mmcv has no compiled operators. What else is listed works '
        'without; the mend is in docs/index.md, "Install"'
    )
    fail(AssertionError('MMCV==2.2.0 is used but incompatible'))
    assert doctor.check_part('mmseg.models') == (
        'cannot be imported (MMCV==2.2.0 is used but incompatible), no '
        'segmentation here'
    )


def test_the_stand_in_for_operators(monkeypatch):
    path = ROOT / 'requirements/mmcv_ext.py'
    spec = importlib.util.spec_from_file_location('mmcv._ext', path)
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    with pytest.raises(
        NotImplementedError, match='nms is a compiled op.*lite'
    ):
        stand_in.nms(1, iou_threshold=0.5)
    assert not hasattr(stand_in, '__path__')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', stand_in)
    monkeypatch.setitem(sys.modules, 'mmcv.ops', stand_in)
    assert doctor.check_part('mmcv.ops') == (
        'a stand-in without operators, no detection here'
    )


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
