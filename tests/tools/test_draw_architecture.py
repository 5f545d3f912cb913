"""tools/draw_architecture.py, by running it."""

import itertools
import runpy
import sys

import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip('matplotlib')
TOOL = str(ROOT / 'tools/draw_architecture.py')


@pytest.fixture
def draw(monkeypatch):
    """Run the tool in this process."""

    def draw(out):
        monkeypatch.setattr(sys, 'argv', [TOOL, '--out', str(out)])
        runpy.run_path(TOOL, run_name='__main__')

    return draw


def test_picture(draw, tmp_path):
    draw(tmp_path / 'architecture.png')
    assert [p.name for p in tmp_path.iterdir()] == ['architecture.png']
    assert (tmp_path / 'architecture.png').stat().st_size < 300_000
    with Image.open(tmp_path / 'architecture.png') as image:
        assert image.format == 'PNG' and image.size == (1600, 1184)
        assert image.convert('RGBA').getpixel((0, 0)) == (255, 255, 255, 255)


def test_no_text_on_another():
    figure = runpy.run_path(TOOL)['draw']()
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


def test_wrong_folder(draw, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        draw(tmp_path / 'missing/architecture.png')
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: folder ')
    assert 'missing does not exist' in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())
