"""``python -m vcmamba_mm.demo image``: one's own pictures, painted."""

import shutil

import numpy as np
import pytest
import torch
from conftest import CONFIGS, GOLDEN
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from vcmamba_mm.demo.__main__ import main

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

CLASSIFIER = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two pictures at different depths, and files that are none."""
    folder = tmp_path_factory.mktemp('pictures')
    (folder / 'deep').mkdir()
    rng = np.random.default_rng(0)
    for name in ('a.png', 'deep/b.JPG'):
        pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, 'PNG')
    (folder / 'deep/broken.png').write_bytes(b'not a picture')
    (folder / 'empty.png').touch()
    (folder / 'notes.txt').write_text('not looked at')
    return folder


@pytest.fixture(scope='module')
def segmenter_file(tmp_path_factory):
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(SEGMENTER).model)
    # class 7 everywhere
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data[7] = 1
    path = tmp_path_factory.mktemp('segmenter') / 'iter_1.pth'
    torch.save(model.state_dict(), path)
    return path


def paint(capsys, *paths, out, model=CLASSIFIER, checkpoint=RELEASE):
    """Run the command; return exit code, standard output and errors."""
    options = ['--model', model, '--checkpoint', checkpoint, '--out', out]
    code = main(['image', *map(str, [*paths, *options])])
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith('error')]
    return code, out, errors


def painted(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob('*.*'))


def test_classes_of_a_folder(folder, tmp_path, capsys):
    """What can be read is painted, what cannot is named, one line each."""
    code, out, errors = paint(
        capsys, folder, tmp_path / 'missing.png', out=tmp_path / 'out'
    )
    assert code == 1
    assert painted(tmp_path / 'out') == ['a.png', 'deep/b.JPG']
    assert len(errors) == 3
    for line, name in zip(errors, ('broken', 'empty', 'missing')):
        assert f'{name}.png cannot be read' in line
    assert '2 painted' in out and '3 not' in out
    original = Image.open(folder / 'a.png')
    picture = Image.open(tmp_path / 'out/a.png')
    assert picture.size == (540, 360)  # enlarged, so that text can be read
    bottom = np.asarray(picture)[200:].astype(int)
    expected = np.asarray(original.resize((540, 360), Image.BILINEAR))[200:]
    assert np.abs(bottom - expected).mean() < 8  # the picture, RGB
    assert np.abs(bottom - expected[..., ::-1]).mean() > 30


def test_classes_are_the_models(folder, tmp_path, capsys, build_tiny):
    from mmpretrain import ImageClassificationInferencer

    code, out, errors = paint(capsys, folder / 'a.png', out=tmp_path / 'out')
    assert (code, errors) == (0, [])
    inferencer = ImageClassificationInferencer(
        str(CLASSIFIER), pretrained=False, device='cpu'
    )
    inferencer.model.load_state_dict(build_tiny().state_dict())
    (result,) = inferencer(str(folder / 'a.png'))
    best = f'{result["pred_label"]} {result["pred_score"]:.0%}'
    assert f'a.png: {best}, ' in out


def test_masks(folder, segmenter_file, tmp_path, capsys):
    code, out, errors = paint(
        capsys,
        folder / 'a.png',
        out=tmp_path / 'out',
        model=SEGMENTER,
        checkpoint=segmenter_file,
    )
    assert (code, errors) == (0, [])
    assert 'a.png: bed  100%' in out  # class 7, spelt by mmseg
    picture = np.asarray(Image.open(tmp_path / 'out/a.png')).astype(float)
    original = Image.open(folder / 'a.png').resize((540, 360), Image.BILINEAR)
    colour = np.array([204, 5, 255])  # of ADE20K's beds
    expected = 0.4 * np.asarray(original) + 0.6 * colour
    # the median, for there is a label on the picture
    assert np.median(np.abs(picture - expected)) < 4


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    shutil.copy(folder / 'a.png', tmp_path / 'a.png')
    before = (tmp_path / 'a.png').read_bytes()
    code, _, errors = paint(capsys, tmp_path / 'a.png', out=tmp_path)
    assert code == 2 and 'would be painted over' in errors[0]
    assert (tmp_path / 'a.png').read_bytes() == before
    out = tmp_path / 'out'
    code, _, errors = paint(
        capsys, tmp_path / 'a.png', folder / 'a.png', out=out
    )
    assert code == 2 and 'both be painted' in errors[0]
    assert not out.exists()


def test_painted_pictures_are_not_painted_again(folder, tmp_path, capsys):
    shutil.copy(folder / 'a.png', tmp_path / 'a.png')
    for _ in range(2):
        code, _, _ = paint(capsys, tmp_path, out=tmp_path / 'painted')
        assert code == 0
        assert painted(tmp_path) == ['a.png', 'painted/a.png']
    code, _, errors = paint(capsys, tmp_path, out=tmp_path)
    assert code == 2 and 'would be painted over' in errors[0]


def test_wrong_model_or_checkpoint(folder, tmp_path, capsys):
    for wrong, text in (
        (dict(model='vcmamba_x'), 'neither a config file nor a name'),
        (dict(checkpoint='none.pth'), 'none.pth does not exist'),
        (dict(model=SEGMENTER), 'does not fit EncoderDecoder'),
    ):
        code, _, errors = paint(capsys, folder, out=tmp_path / 'out', **wrong)
        assert code == 2 and text in errors[0] and len(errors) == 1
    assert not (tmp_path / 'out').exists()
