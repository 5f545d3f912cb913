import gc
import itertools
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

# Without a GPU the kernels run in Triton's interpreter. It has to be chosen
# before they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')
# On a GPU PyTorch's deterministic mode wants it, before the first product.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
# A `make` that a test calls does not belong to the `make` that runs the tests.
for name in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS'):
    os.environ.pop(name, None)
# PyTorch waits so long for each worker of a loader that ends as garbage.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'tests/fixtures/configs'
GOLDEN = ROOT / 'tests/fixtures/golden/vcmamba'
# What processes find before the packages; as pythonpath in pyproject.toml.
QUICK = ROOT / 'tests/fixtures/quick'
SHARED = ROOT.parent / 'shared' / 'data'

# The architecture of golden/tiny_release.pth, trained at 160 x 160.
TINY = dict(embed_dims=(16, 32, 48, 64), depths=(1, 1, 2, 4), num_mdm=2)


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip a test on PyTorch before ``version``, which lacks ``what``."""
    return pytest.mark.skipif(
        torch.__version__ < version, reason=f'PyTorch < {version}: {what}'
    )


needs_export = needs_torch('2.8', 'no scan operator that can be exported')
needs_fsdp2 = needs_torch('2.6', 'no fully_shard')


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    # Several test processes share the cores.
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def _quick_interpreter():
    """Leave out half of what Triton's interpreter does, without effect here.

    It patches the language anew in every call of a function by a kernel, and
    computes offsets twice, in 64 bits too, as no GPU does by itself.
    """
    if 'TRITON_INTERPRET' not in os.environ or not find_spec('triton'):
        return
    from triton import language
    from triton.runtime import interpreter

    patch = getattr(interpreter, '_patch_lang', None)
    if patch is None:  # another Triton: slower then
        return

    def patch_once(function):
        seen = function.__globals__.values()
        if any(
            language.core.is_builtin(its.load)
            for its in (language, language.core)
            if any(its is value for value in seen)
        ):
            return patch(function)

    interpreter._patch_lang = patch_once
    builder = interpreter.interpreter_builder
    if hasattr(builder.options, 'sanitize_overflow'):
        builder.options = replace(builder.options, sanitize_overflow=False)


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder of small real data sets that are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f'needs the real data sets in {SHARED}')
    return SHARED


@pytest.fixture(scope='session')
def tiny_io() -> dict[str, torch.Tensor]:
    """Recorded inputs and outputs of the released implementation."""
    arrays = np.load(GOLDEN / 'tiny_io.npz')
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope='session')
def released_keys() -> dict[str, dict[str, list[int]]]:
    keys = json.loads((GOLDEN / 'released_keys.json').read_text())
    return {variant: dict(pairs) for variant, pairs in keys.items()}


def tiny_classifier_cfg(num_classes: int = 10, **kwargs) -> dict:
    """Config of a classifier that golden/tiny_release.pth fits."""
    return dict(
        dict(
            type='ImageClassifier',
            backbone=dict(type='VCMamba', arch=TINY, img_size=160),
            neck=dict(type='NormGlobalAveragePooling', in_channels=64),
            head=dict(
                type='VCMambaClsHead',
                num_classes=num_classes,
                in_channels=64,
                distillation=True,
            ),
        ),
        **kwargs,
    )


def smallest_classifier_cfg() -> dict:
    """Config of a classifier with one block of each kind, stride 8."""
    arch = dict(embed_dims=(8, 8), depths=(1, 1), num_mdm=1)
    return tiny_classifier_cfg(
        backbone=dict(type='VCMamba', arch=arch, img_size=64),
        neck=dict(type='NormGlobalAveragePooling', in_channels=8),
        head=dict(type='VCMambaClsHead', num_classes=3, in_channels=8),
    )


def smallest_segmenter_cfg(**head) -> dict:
    """Config of a segmenter with one block in each of four stages."""
    cfg = Config.fromfile(CONFIGS / 'tiny_segmenter.py').model
    dims = [8, 8, 8, 8]
    cfg.backbone.arch.update(embed_dims=dims, depths=(1, 1, 1, 1), num_mdm=1)
    cfg.neck.in_channels = dims
    cfg.decode_head.update(head)
    return cfg


def randomize_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Give batch norms, layer scales and delta's bias what training could."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            if module.running_var is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
            if module.affine:
                torch.nn.init.normal_(module.weight, 1, 0.3)
                torch.nn.init.normal_(module.bias, 0, 0.3)
    for name, parameter in model.named_parameters():
        if name.endswith(('gamma', 'dt_proj.bias')):
            torch.nn.init.normal_(parameter, 0, 0.5)
    return model


@pytest.fixture
def build_tiny():
    """Build a tiny classifier with the recorded weights."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import MODELS

    import vcmamba_mm.classification  # noqa: F401
    from vcmamba_mm.checkpoints import extract_state_dict, read_checkpoint

    init_default_scope('mmpretrain')

    def build(**kwargs):
        model = MODELS.build(tiny_classifier_cfg(**kwargs))
        path = GOLDEN / 'tiny_release.pth'
        model.load_state_dict(extract_state_dict(read_checkpoint(path), path))
        return model

    return build


@pytest.fixture(scope='session')
def run():
    """Run a program from the repository; return the finished process."""

    def run(*args, cwd=ROOT, check=True, **env):
        args = [str(a) for a in args]
        if args[0].endswith('.py'):
            args.insert(0, sys.executable)
        process = subprocess.run(
            args,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            env={
                **os.environ,
                'PYTHONPATH': f'{ROOT}:{QUICK}',
                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                'CUDA_VISIBLE_DEVICES': '',
                'OMP_NUM_THREADS': '1',
                **env,
            },
        )
        if check and process.returncode:
            pytest.fail(
                f'{" ".join(args)} exited with {process.returncode}\n'
                f'{process.stdout[-3000:]}\n{process.stderr[-3000:]}'
            )
        return process

    return run


names = itertools.count()


def run_tool(script: str, *args) -> None:
    """Run one of tools/ in this process, under a name of its own.

    MMEngine names a run, and its loggers, by the second that it begins in.
    """
    args = [str(a) for a in args]
    if script in ('train.py', 'test.py'):
        if '--cfg-options' not in args:
            args.append('--cfg-options')
        place = args.index('--cfg-options') + 1
        args.insert(place, f'experiment_name=tool_{next(names)}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *args])
        runpy.run_path(str(ROOT / 'tools' / script), run_name='__main__')


@pytest.fixture
def run_here(capfd):
    """Run a tool in this process; return what it printed, or its error."""

    def run_here(script, *args):
        try:
            run_tool(script, *args)
        except SystemExit as stop:
            assert stop.code == 2
            return capfd.readouterr().err.strip().splitlines()[-1]
        return capfd.readouterr().out

    return run_here


@pytest.fixture(scope='session')
def picture_file(tmp_path_factory):
    """A bright square on noise, 120 x 90 pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (90, 120, 3), dtype=np.uint8)
    pixels[20:50, 30:70] = 250, 200, 20
    path = tmp_path_factory.mktemp('picture') / 'square.png'
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """Ten classes of noise in ImageNet's layout, two pictures each."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        lines = []
        for label in range(10):
            for i in range(2):
                name = f'{label}/{label}_{i}.jpg'
                path = root / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(
                    rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                ).save(path)
                lines.append(f'{name} {label}')
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    return root


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """Noise with label maps in ADE20K's layout, two pictures."""
    root = tmp_path_factory.mktemp('ade')
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(
                rng.integers(0, 256, (96, 150, 3), dtype=np.uint8)
            ).save(root / f'images/{split}/{i}.jpg')
            Image.fromarray(
                rng.integers(0, 4, (96, 150), dtype=np.uint8)
            ).save(root / f'annotations/{split}/{i}.png')
    return root


def pytest_collection_finish():
    # Every data set that is built collects garbage: not among the packages.
    gc.freeze()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason='needs a CUDA device')
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(skip)
