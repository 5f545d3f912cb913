"""The package as users get it: from a wheel, and with half of the stack."""

import importlib.util
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT, TINY

BACKBONE = f"""
import torch
from mmengine.config import Config
from SCOPE.registry import MODELS
cfg = Config(dict(model=dict(type='VCMamba', arch={TINY!r}, img_size=64)))
from mmengine.utils import import_modules_from_strings
import_modules_from_strings(['vcmamba_mm'])
print(MODELS.build(cfg.model)(torch.zeros(2, 3, 64, 64))[0].shape)
"""
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {hidden}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Hidden())
"""


def hide(*packages):
    """Code after which the packages cannot be imported."""
    return HIDE.format(hidden=packages)


@pytest.mark.parametrize(
    'scope, missing',
    [
        ('mmseg', ('mmpretrain',)),
        ('mmpretrain', ('mmseg',)),
        ('mmengine', ('mmpretrain', 'mmseg')),
    ],
)
def test_backbone_without_the_other_packages(run, tmp_path, scope, missing):
    pytest.importorskip(scope)
    script = tmp_path / 'script.py'
    script.write_text(hide(*missing) + BACKBONE.replace('SCOPE', scope))
    assert 'torch.Size([2, 64, 2, 2])' in run(script, cwd=tmp_path).stdout


@pytest.mark.parametrize('missing', ['mmengine', 'mmcv'])
def test_missing_stack_is_named(run, tmp_path, missing):
    script = tmp_path / 'script.py'
    script.write_text(hide(missing) + 'import vcmamba_mm')
    process = run(script, cwd=tmp_path, check=False)
    last = process.stderr.strip().splitlines()[-1]
    assert f'vcmamba_mm needs {missing}' in last and '[onedl]' in last


def test_older_pytorch_is_refused(run, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import torch\n'
        'torch.__version__ = torch.torch_version.TorchVersion("2.1.2+cu118")\n'
        'import vcmamba_mm'
    )
    last = run(script, cwd=tmp_path, check=False).stderr.splitlines()[-1]
    assert last.startswith('ImportError: vcmamba_mm needs PyTorch >= 2.4 ')
    assert 'this is 2.1.2+cu118: make a new environment ' in last


def test_import_is_light_and_silent(run, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, vcmamba_mm\n'
        'bad = {"mmpretrain", "mmseg", "mamba_ssm", "timm", "sklearn"}\n'
        'assert not bad & set(sys.modules), bad & set(sys.modules)\n'
    )
    assert run(script, cwd=tmp_path).stdout == ''


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-deps',
            '--wheel-dir',
            folder,
            ROOT,
        ],
        check=True,
    )
    (wheel,) = folder.glob('*.whl')
    return wheel


def test_wheel_holds_configs_and_tools(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    mim = 'vcmamba_mm/.mim'
    assert {
        f'{mim}/configs/vcmamba_b_8xb128_in1k.py',
        f'{mim}/configs/_base_/models/vcmamba_cls.py',
        f'{mim}/configs/metafile.yml',
        f'{mim}/configs/metafile_segmentation.yml',
        f'{mim}/model-index.yml',
        f'{mim}/tools/train.py',
        f'{mim}/tools/dist_train.sh',
        'vcmamba_mm/ops/path_scan.py',
    } <= names
    assert not any(name.startswith('tests') for name in names)


def test_wheel_works_outside_the_repository(wheel, run, tmp_path):
    """In an environment of its own that sees this one's other packages."""
    venv.create(tmp_path / 'env', with_pip=False)
    site = next((tmp_path / 'env').glob('lib/python*/site-packages'))
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'install',
            '-q',
            '--no-deps',
            '--target',
            site,
            wheel,
        ],
        check=True,
    )
    others = [path for path in sys.path if path.endswith('site-packages')]
    # plain folders, after the wheel: editable installs are not followed
    environment = dict(PYTHONPATH=':'.join([str(site), *others]))
    python = tmp_path / 'env/bin/python'
    mim = site / 'vcmamba_mm/.mim'
    out = run(
        python,
        mim / 'tools/get_flops.py',
        mim / 'configs/vcmamba_s_8xb128_in1k.py',
        cwd=tmp_path,
        **environment,
    ).stdout
    assert '10.190 M' in out
    code = 'import vcmamba_mm; print(vcmamba_mm.__file__)'
    if importlib.util.find_spec('mmpretrain'):
        code += """
import vcmamba_mm.classification
from mmpretrain import get_model
print(type(get_model('vcmamba_s_8xb128_in1k')))
"""
    out = run(python, '-c', code, cwd=tmp_path, **environment).stdout
    assert out.startswith(f'{site / "vcmamba_mm/__init__.py"}\n')
    assert 'ImageClassifier' in out or 'get_model' not in code
