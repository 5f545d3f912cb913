"""Exported files of other opsets, types, channels, heads and sizes."""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    needs_export,
    randomize_norms,
    smallest_classifier_cfg,
    smallest_segmenter_cfg,
)
from exported import in_float64, session
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from vcmamba_mm.deploy import fuse
from vcmamba_mm.deploy.export import ExportError, Logits, export

onnx = pytest.importorskip('onnx')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

pytestmark = needs_export

# What the model takes from its stride, 8, on; no multiples of it.
IMAGES = [(1, 8, 8), (2, 9, 33), (3, 30, 17)]
TOO_SMALL = [(4, 4), (7, 64), (64, 7)]
# Of the oldest ONNX that knows the opsets 16, 17 and 18, by its table.
IR_VERSION = 8


def build_classifier(channels=3, **preprocessing):
    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    cfg = smallest_classifier_cfg()
    cfg['backbone'].update(
        in_channels=channels,
        # as many decay rates as in large models, 16 channels x 600
        mixer_cfg=dict(d_state=600),
    )
    cfg['data_preprocessor'] = preprocessing or None
    torch.manual_seed(0)
    return randomize_norms(MODELS.build(cfg)).eval()


@pytest.fixture(scope='module')
def classifier():
    return build_classifier()


@pytest.fixture(scope='module')
def binary_segmenter():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = smallest_segmenter_cfg(num_classes=2, out_channels=1)
    model = randomize_norms(MODELS.build(cfg)).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    return model


def largest_error(run, model, sizes=IMAGES):
    """Of ``run``'s logits at ``sizes``, relative to the largest logit."""
    model, errors = in_float64(model), []
    for batch, *size in sizes:
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model(images.double(), mode='tensor').numpy()
        (found,) = run(None, dict(images=images.numpy()))
        assert found.shape == expected.shape and found.dtype == np.float32
        errors.append(abs(found - expected).max() / abs(expected).max())
    return max(errors)


@pytest.fixture(scope='module')
def oldest(classifier, tmp_path_factory):
    """A file of the oldest opset, for any size."""
    path = tmp_path_factory.mktemp('oldest') / 'model.onnx'
    export(classifier, path, 'onnx', (24, 40), dynamic=True, opset=16)
    return path


def check_opset(path, opset):
    model = onnx.load(path)
    assert [o.version for o in model.opset_import] == [opset]
    assert model.ir_version == IR_VERSION
    onnx.checker.check_model(model, full_check=True)


def test_oldest_opset(classifier, oldest):
    check_opset(oldest, 16)
    assert largest_error(session(oldest).run, classifier) < 1e-5


def test_a_dynamic_file_refuses_what_the_model_refuses(oldest):
    run = session(oldest).run
    for size in TOO_SMALL:
        images = np.zeros((2, 3, *size), np.float32)
        with pytest.raises(Exception, match='must_have_8_x_8_pixels') as info:
            run(None, dict(images=images))
        assert type(info.value).__module__.startswith('onnxruntime')


def test_what_a_scan_takes_from_outside_is_constant(oldest):
    """OpenVINO cannot read another one."""
    graph = onnx.load(oldest).graph
    constants = {weights.name for weights in graph.initializer}
    (scan,) = [node for node in graph.node if node.op_type == 'Scan']
    (body,) = [a.g for a in scan.attribute if a.name == 'body']
    inside = {value.name for value in (*body.input, *body.initializer)}
    inside |= {name for node in body.node for name in node.output}
    taken = {name for node in body.node for name in node.input} - inside
    assert taken and taken <= constants


def test_openvino(classifier, oldest):
    openvino = pytest.importorskip('openvino', reason='needs OpenVINO')
    model = openvino.Core().read_model(oldest)
    config = dict(INFERENCE_PRECISION_HINT='f32')  # else what the CPU likes
    compiled = openvino.compile_model(model, 'CPU', config)

    def run(_, inputs):
        return [compiled(inputs)['logits']]

    assert largest_error(run, classifier) < 1e-5
    for size in TOO_SMALL:
        with pytest.raises(RuntimeError, match='must_have_8_x_8_pixels'):
            compiled(dict(images=np.zeros((2, 3, *size), np.float32)))


def test_a_file_names_no_folder_of_this_machine(oldest):
    assert str(ROOT).encode() not in oldest.read_bytes()


def test_float16_and_the_tool(run_here, classifier, tmp_path):
    cfg = dict(model=smallest_classifier_cfg(), default_scope='mmpretrain')
    cfg['model']['backbone']['mixer_cfg'] = dict(d_state=600)
    Config(cfg).dump(tmp_path / 'config.py')
    torch.save(classifier.state_dict(), tmp_path / 'model.pth')
    path = tmp_path / 'model.onnx'
    args = [tmp_path / 'config.py', tmp_path / 'model.pth', '--out', path]
    args += ['--shape', 24, 40, '--dtype', 'float16', '--opset']
    assert 'classes   argmax' in run_here('export.py', *args, 18)
    assert 'from 16 on, got 15' in run_here('export.py', *args, 15)

    check_opset(path, 18)
    weights = onnx.load(path).graph.initializer
    half = {w.name for w in weights if w.data_type == onnx.TensorProto.FLOAT16}
    assert {w.name for w in weights if w.name.endswith('.weight')} <= half
    # The unit roundoff of float16 is 2^-11 = 4.9e-4. Some thirty maps are
    # rounded one after the other; if all of that went one way, 1.5e-2.
    error = largest_error(session(path).run, classifier, [(1, 24, 40)])
    assert 2**-14 < error < 30 * 2**-11


def test_other_opsets_and_types(classifier, tmp_path):
    path = tmp_path / 'model.onnx'
    with pytest.raises(ValueError, match='from 16 on, got 15 for onnx'):
        export(classifier, path, 'onnx', (24, 40), opset=15)
    with pytest.raises(ValueError, match='got 17 for torch-export'):
        export(classifier, path, 'torch-export', (24, 40), opset=17)
    with pytest.raises(ValueError, match='unknown dtype torch.float64'):
        export(classifier, path, 'onnx', (24, 40), dtype=torch.float64)


def test_what_an_opset_cannot_say_is_not_kept(
    classifier, tmp_path, monkeypatch
):
    monkeypatch.setattr('vcmamba_mm.deploy.onnx_graph.lower', keep_operators)
    path = tmp_path / 'model.onnx'
    with pytest.raises(ExportError, match='no valid ONNX of opset 17: .*Redu'):
        export(classifier, path, 'onnx', (24, 40), opset=17)
    with pytest.raises(ExportError, match='can write no opset 99'):
        export(classifier, path, 'onnx', (24, 40), opset=99)
    assert not list(tmp_path.iterdir())


def keep_operators(model, opset):
    model.opset_imports[''] = opset


CHANNELS = {
    1: dict(mean=[120.0], std=[60.0]),
    4: dict(mean=[120.0, 110, 100, 90], std=[60.0, 50, 40, 30]),
}


@pytest.mark.parametrize('channels', CHANNELS)
def test_other_channels(channels, tmp_path):
    # What is asked of three channels is left out for others.
    model = build_classifier(channels, **CHANNELS[channels], to_rgb=True)
    path = tmp_path / 'model.onnx'
    report = export(model, path, 'onnx', (24, 40), with_preprocessing=True)
    assert list(report.errors) == [(1, channels, 24, 40)]
    images = torch.randint(256, (1, channels, 24, 40), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=images))
    with torch.no_grad():
        expected = in_float64(model)(data['inputs'].double(), mode='tensor')
        (found,) = session(path).run(None, dict(images=images.numpy()))
        assert abs(found - expected.numpy()).max() < 1e-5
        fused = fuse(copy.deepcopy(model))(data['inputs'], mode='tensor')
        assert (fused - expected).abs().max() < 1e-5


def test_binary_head(binary_segmenter, tmp_path):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # half of the pixels on either side
        logits = binary_segmenter(images, mode='tensor')
        binary_segmenter.decode_head.conv_seg.bias -= logits.median() + 0.85
        (result,) = binary_segmenter.predict(images)
    expected = result.pred_sem_seg.data.numpy()
    assert 0.2 < expected.mean() < 0.8

    path = tmp_path / 'model.onnx'
    report = export(binary_segmenter, path, 'onnx', (64, 64), opset=17)
    check_opset(path, 17)
    threshold = re.fullmatch(
        r'1 where sigmoid\(logits\) > (\S+), 0 elsewhere', report.classes
    )[1]
    (logits,) = session(path).run(None, dict(images=images.numpy()))
    assert logits.shape == (1, 1, 64, 64)
    classes = 1 / (1 + np.exp(-logits[0])) > float(threshold)
    np.testing.assert_array_equal(classes, expected)


def test_how_to_get_classes(classifier):
    assert 'argmax' in Logits(classifier).classes()
    several = copy.deepcopy(classifier)
    several.head = MODELS.build(
        dict(
            type='mmpretrain.MultiLabelLinearClsHead',
            num_classes=3,
            in_channels=8,
            thr=0.4,
        )
    )
    assert Logits(several).classes() == 'all with sigmoid(logits) >= 0.4'
