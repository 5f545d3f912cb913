"""Exported files, run by other runtimes, against the model in float64."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import (
    CONFIGS,
    GOLDEN,
    TINY,
    needs_export,
    randomize_norms,
    smallest_classifier_cfg,
    smallest_segmenter_cfg,
)
from exported import error, in_float64, session
from mmengine.registry import MODELS, init_default_scope

from vcmamba_mm import VCMamba
from vcmamba_mm.deploy import export as export_module
from vcmamba_mm.deploy.export import ExportError, export
from vcmamba_mm.inference import get_model

onnx = pytest.importorskip('onnx')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

pytestmark = needs_export

CLASSIFIER = CONFIGS / 'tiny_classifier.py'
RELEASE = GOLDEN / 'tiny_release.pth'
# of sizes that the export itself does not try
IMAGES = [(1, 160, 160), (2, 33, 64), (3, 90, 77)]


def build_smallest(**backbone):
    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    cfg = smallest_classifier_cfg()
    cfg['backbone'].update(backbone)
    return MODELS.build(cfg).eval()


@pytest.fixture
def smallest():
    return build_smallest()


@pytest.fixture(scope='module')
def segmenter():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return randomize_norms(MODELS.build(smallest_segmenter_cfg())).eval()


def test_classifier_with_preprocessing(tmp_path):
    """One path in a block, in another four with their own parameters."""
    classifier = get_model(CLASSIFIER, RELEASE, device='cpu')
    one, four = (
        block.mixer for block in classifier.backbone.stages[-1].blocks[2:]
    )
    one.num_paths, four.param_order = 1, 'path'
    path = tmp_path / 'model.onnx'
    report = export(
        classifier,
        path,
        'onnx',
        (96, 128),
        dynamic=True,
        with_preprocessing=True,
    )
    assert [path] == list(tmp_path.iterdir())
    assert report.file_size == path.stat().st_size
    assert len(report.errors) == 4 and max(report.errors.values()) < 1e-5
    graph = onnx.load(path).graph
    ops = [node.op_type for node in graph.node]
    # one loop for each MDM block, and no unrolled one
    assert ops.count('Scan') == TINY['num_mdm'] and len(ops) < 400
    assert report.num_nodes > len(ops)  # those inside of loops, too
    assert 'BatchNormalization' not in ops

    run = session(path)
    (images,), (logits,) = run.get_inputs(), run.get_outputs()
    assert images.shape == ['batch', 3, 'height', 'width']
    assert images.type == 'tensor(uint8)'
    assert (images.name, logits.name) == ('images', 'logits')
    assert logits.shape == ['batch', 10]
    expected_of = in_float64(classifier)
    for batch, *size in IMAGES:
        images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8)
        data = expected_of.data_preprocessor(dict(inputs=images))
        assert data['inputs'].abs().max() < 3  # normalized
        with torch.no_grad():
            expected = expected_of(data['inputs'].double(), mode='tensor')
        (found,) = run.run(['logits'], dict(images=images.numpy()))
        assert error(found, expected) < 1e-5


def test_segmenter(segmenter, tmp_path):
    path = tmp_path / 'model.onnx'
    export(segmenter, path, 'onnx', (64, 96), dynamic=True)
    run = session(path)
    expected_of = in_float64(segmenter)
    for batch, *size in IMAGES:
        images = torch.randn(batch, 3, *size)
        metas = [dict(img_shape=size, ori_shape=size, pad_shape=size)] * batch
        with torch.no_grad():
            expected = expected_of.encode_decode(images.double(), metas)
        (found,) = run.run(['logits'], dict(images=images.numpy()))
        assert error(found, expected) < 1e-5
    assert 'Scan' in [node.op_type for node in onnx.load(path).graph.node]


def test_preprocessing_of_a_segmenter(segmenter):
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    preprocess = export_module.Logits(segmenter, True)._preprocess
    expected = segmenter.data_preprocessor(dict(inputs=list(images)))
    torch.testing.assert_close(preprocess(images), expected['inputs'])


LOAD = """
import sys, numpy, torch
run = torch.export.load(sys.argv[1]).module()
assert not {'vcmamba_mm', 'mmengine', 'mmcv'} & set(sys.modules)
for i, file in enumerate(sys.argv[2:]):
    numpy.save(file, run(torch.from_numpy(numpy.load(file))).detach())
"""


def test_torch_export_needs_torch_alone(tmp_path):
    """Also norms that are not folded, and what the ablation asks of mixers."""
    mixer = dict(num_paths=2, snake=False, gate=True, proj='linear')
    mixer.update(param_order='path', backend='reference')
    model = build_smallest(mixer_cfg=mixer, mdm_cfg=dict(ffn='linear'))
    randomize_norms(model)
    path = tmp_path / 'model.pt2'
    kwargs = dict(dynamic=True, fuse=False)
    export(model, path, 'torch-export', (96, 128), **kwargs)
    files, expected = [], []
    # a token takes as long here as hundreds in ONNX
    for i, (batch, *size) in enumerate([(1, 72, 88), (2, 33, 64)]):
        images = torch.randn(batch, 3, *size)
        files.append(tmp_path / f'{i}.npy')
        np.save(files[-1], images)
        with torch.no_grad():
            expected.append(in_float64(model)(images.double(), mode='tensor'))
    subprocess.run(
        [sys.executable, '-c', LOAD, path, *files], check=True, cwd=tmp_path
    )
    for file, logits in zip(files, expected):
        assert error(np.load(file), logits) < 1e-5
    run = torch.export.load(path).module()
    for size in [(4, 4), (64, 7)]:  # the model refuses them, too
        with pytest.raises((AssertionError, RuntimeError), match='>= 9'):
            run(torch.zeros(1, 3, *size))


def test_tool(run_here, tmp_path):
    path = tmp_path / 'model.onnx'
    args = [CLASSIFIER, RELEASE, '--out', path, '--shape', 64, 96]
    out = run_here('export.py', *args)
    found = float(re.search(r'\(1, 3, 64, 96\) .* by (\S+)', out)[1])
    assert found < 1e-5
    assert re.search(r'[\d.]+ MB', out) and re.search(r'nodes +\d+', out)
    assert re.search(r'latency +[\d.]+ ms, PyTorch [\d.]+ ms', out)
    (images,) = session(path).get_inputs()
    assert images.shape == [1, 3, 64, 96]
    error = run_here('export.py', *args, '--format', 'x')
    assert "invalid choice: 'x'" in error


def without_skip(tensors, options):
    """A wrong translation: D x is missing."""
    return CORRECT(tensors._replace(D=None), options)


CORRECT = export_module.export_scan


@pytest.mark.parametrize('file', ['model.onnx', 'model.pt2'])
def test_a_wrong_translation_is_not_kept(
    file, smallest, tmp_path, monkeypatch
):
    format = 'onnx' if file.endswith('onnx') else 'torch-export'
    monkeypatch.setattr(export_module, 'export_scan', without_skip)
    path = tmp_path / file
    earlier = [path] if format == 'onnx' else []
    for path in earlier:
        path.write_text('an earlier export')
    message = r'differs from PyTorch by .*e-0.*nothing was kept'
    with pytest.raises(ExportError, match=message):
        export(smallest, path, format, (64, 64))
    assert list(tmp_path.iterdir()) == earlier
    assert all(path.read_text() == 'an earlier export' for path in earlier)


def test_missing_onnxruntime_is_named(smallest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ExportError, match=r'onnxruntime.*\[export\]'):
        export(smallest, tmp_path / 'model.onnx', 'onnx', (64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'file, format, kwargs, message',
    [
        ('model.onnx', 'x', {}, "unknown format 'x': choose one of"),
        ('model.pt2', 'onnx', {}, 'end with .onnx'),
        ('no/model.onnx', 'onnx', {}, 'no does not exist'),
        ('model.onnx', 'onnx', dict(dynamic=True), 'from 8 x 8 pixels on'),
    ],
)
def test_wrong_arguments(smallest, tmp_path, file, format, kwargs, message):
    with pytest.raises(ValueError, match=message):
        export(smallest, tmp_path / file, format, (7, 64), **kwargs)


def test_other_models(smallest, tmp_path):
    path = tmp_path / 'model.onnx'
    with pytest.raises(ExportError, match='neither a classifier nor a seg'):
        export(VCMamba(TINY), path, 'onnx', (64, 64))
    with pytest.raises(ValueError, match='is in training mode'):
        export(smallest.train(), path, 'onnx', (64, 64), fuse=False)
