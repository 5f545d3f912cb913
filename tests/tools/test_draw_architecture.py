"""tools/draw_architecture.py, by running it."""

import errno
import itertools
import runpy
import sys

import pytest
from conftest import ROOT
from PIL import Image

from vcmamba_mm import files

pytest.importorskip('matplotlib')
TOOL = str(ROOT / 'tools/draw_architecture.py')


@pytest.fixture
def draw(monkeypatch):
    """Run the tool in this process."""

    def draw(out, model='VCMamba'):
        argv = [TOOL, '--model', model, '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', argv)
        monkeypatch.syspath_prepend(str(ROOT / 'tools'))
        runpy.run_path(TOOL, run_name='__main__')

    return draw


@pytest.mark.parametrize(
    'model, height',
    [
        ('VCMamba', 1184),
        ('VMamba', 1120),
        ('MambaVision', 1220),
        ('PlainMamba', 1220),
    ],
)
def test_picture(draw, tmp_path, model, height):
    draw(tmp_path / 'architecture.png', model)
    assert [p.name for p in tmp_path.iterdir()] == ['architecture.png']
    assert (tmp_path / 'architecture.png').stat().st_size < 300_000
    with Image.open(tmp_path / 'architecture.png') as image:
        assert image.format == 'PNG' and image.size == (1600, height)
        assert image.convert('RGBA').getpixel((0, 0)) == (255, 255, 255, 255)


@pytest.mark.parametrize(
    'model', ['VCMamba', 'VMamba', 'MambaVision', 'PlainMamba']
)
def test_no_text_on_another(monkeypatch, model):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    figure = runpy.run_path(TOOL)['FIGURES'][model]()
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    # Less the space around the letters, which may touch.
    boxes = [text.get_window_extent().padded(-2) for text in texts]
    assert len(boxes) > 100
    for box in boxes:
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)
    for i, j in itertools.combinations(range(len(boxes)), 2):
        assert not boxes[i].overlaps(boxes[j]), (texts[i], texts[j])
    # What stands in a box, half way from left to right, fits into it.
    framed = 0
    for patch in figure.axes[0].patches:
        frame = patch.get_window_extent()
        for text, box in zip(texts, boxes):
            x, y = text.get_transform().transform(text.get_position())
            middle = pytest.approx((frame.x0 + frame.x1) / 2, abs=0.1)
            if x == middle and frame.y0 < y < frame.y1:
                assert frame.x0 < box.x0 and box.x1 < frame.x1, text
                assert frame.y0 < box.y0 and box.y1 < frame.y1, text
                framed += 1
    assert framed > 15


def test_a_full_disk_leaves_the_figure_that_was_there(
    draw, tmp_path, monkeypatch
):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left')

    out = tmp_path / 'architecture.png'
    out.write_bytes(b'before')
    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(SystemExit):
        draw(out)
    assert out.read_bytes() == b'before'
    assert [*tmp_path.iterdir()] == [out]


def test_wrong_folder(draw, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        draw(tmp_path / 'missing/architecture.png')
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: folder ')
    assert 'missing does not exist' in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())
