import importlib.util
import re
import sys

import pytest
import torch
from conftest import ROOT

from vcmamba_mm import __version__, doctor
from vcmamba_mm.ops import backends, self_check
from vcmamba_mm.ops.backends import BACKENDS
from vcmamba_mm.ops.self_check import Verdict


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
    assert re.search(r"scan backend 'auto' on cpu: (numba|torch)\n", out)
    assert 'FAILS' not in out and 'WARNING' not in out


def test_wrong_results_and_mixed_stacks_are_shown(monkeypatch, capsys):
    scan = doctor.path_scan
    monkeypatch.setattr(
        doctor,
        'path_scan',
        lambda *args, **kwargs: 1.01 * scan(*args, **kwargs),
    )
    assert re.match(
        r'FAILS on cpu, largest error 1.0e-02, of .* in Case\(',
        doctor.check_backend('torch', 'cpu'),
    )
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
    def broken(*args, **kwargs):
        raise RuntimeError('no kernel image')

    monkeypatch.setattr(doctor, 'path_scan', broken)
    assert doctor.check_backend('torch', 'cpu') == (
        'FAILS on cpu, RuntimeError: no kernel image'
    )


def test_the_kernels_of_a_gpu_are_checked_anew(monkeypatch, capsys):
    """And 'auto' goes by what is found now."""
    device = torch.device('cuda', 0)
    asked, verdicts = [], {}

    def check_triton(device, fresh=False):
        asked.append((device, fresh))
        if fresh:
            verdicts[device] = Verdict(False, 'largest error 2.0e-01, of y')
        return verdicts[device]

    monkeypatch.setattr(doctor, 'check_triton', check_triton)
    monkeypatch.setattr(self_check, 'check_triton', check_triton)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'G 1')
    monkeypatch.setattr(
        torch.cuda, 'is_current_stream_capturing', lambda: False
    )
    monkeypatch.setattr(backends, '_works', lambda name: name == 'triton')
    monkeypatch.setattr(backends, '_interprets_triton', lambda: False)
    monkeypatch.setattr(
        doctor, 'available_backends', lambda: dict(triton=None)
    )
    doctor.main()
    out = capsys.readouterr().out
    assert (
        'scan backend triton: FAILS on cuda:0, largest error 2.0e-01, of y\n'
        "scan backend 'auto' on cpu: torch\n"
        "scan backend 'auto' on cuda:0: torch\n"
    ) in out
    assert asked == [(device, True), (device, False)]


def test_the_variable_for_auto_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'available_backends', dict)
    for value, meaning in (
        ('torch', 'torch'),
        ('tritium', 'VCMAMBA_MM_BACKEND: unknown scan backend'),
    ):
        monkeypatch.setenv('VCMAMBA_MM_BACKEND', value)
        doctor.main()
        assert (
            f"VCMAMBA_MM_BACKEND: {value}\nscan backend 'auto' on cpu: "
            f'{meaning}'
        ) in capsys.readouterr().out
