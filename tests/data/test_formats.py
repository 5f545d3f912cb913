"""The tables of docs/formats.md, row by row."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from vcmamba_mm import CheckMasksHook
from vcmamba_mm.data.decoding import DecodeError
from vcmamba_mm.data.folders import PICTURES
from vcmamba_mm.data.masks import MaskError
from vcmamba_mm.data.reading import ImageReadError, LoadImageStrict

PAGE = (ROOT / 'docs/formats.md').read_text()


def rows(title):
    """The cells of a section's table."""
    section = re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', PAGE, re.S | re.M)
    table = re.findall(r'^\|(.+)\|$', section[1], re.M)[2:]
    return [[cell.strip() for cell in row.split(' | ')] for row in table]


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
LABELS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 5
LABELS[LABELS == 4] = 255
NAMES = dict(
    Image=Image,
    np=np,
    orientation=orientation,
    rgb=RGB,
    bgr=RGB[..., ::-1],
    grey=RGB[..., 0].copy(),
    labels=LABELS,
)


def follow(cell, read):
    """Compare what is read with what a cell says."""
    words = re.fullmatch(r'refused: `(.*)`', cell)
    if words:
        with pytest.raises((ImageReadError, MaskError)) as caught:
            read()
        assert words[1] in str(caught.value)
        assert '\n' not in str(caught.value)
    else:
        expected = eval(cell.strip('`'), NAMES)
        assert np.array_equal(read(), expected)


def load(*steps, **results):
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    return results


def load_mask(*steps, **results):
    """And look at it, as each loop does."""
    results = load(*steps, dict(type='LoadMaskStrict'), **results)
    labels = results['gt_seg_map']
    sample = BaseDataElement(
        gt_sem_seg=PixelData(data=labels[None].astype(np.int64)),
        metainfo=dict(seg_map_path=results['seg_map_path']),
    )
    sample.gt_sem_seg = sample.gt_sem_seg.to_tensor()
    head = SimpleNamespace(num_classes=4, ignore_index=255)
    runner = SimpleNamespace(model=SimpleNamespace(decode_head=head))
    CheckMasksHook().before_train_iter(runner, 0, dict(data_samples=[sample]))
    return labels


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(code):
    """Run the code of a cell; return the file it wrote."""
    code = code.strip('`')
    exec(code, NAMES)
    return re.search(r"'([am]\.\w+)'", code)[1]


@pytest.mark.parametrize('what, code, cell', rows('Images'))
def test_pictures(what, code, cell):
    path = made(code)
    follow(
        cell, lambda: load(dict(type='LoadImageStrict'), img_path=path)['img']
    )


@pytest.mark.parametrize('what, code, cell', rows('Masks'))
def test_masks(what, code, cell):
    path = made(code)
    follow(cell, lambda: load_mask(seg_map_path=path))


@pytest.mark.parametrize('picture, mask, cell', rows('A mask and its image'))
def test_pairs(picture, mask, cell):
    paths = dict(img_path=made(picture), seg_map_path=made(mask))
    follow(cell, lambda: load_mask(dict(type='LoadImageStrict'), **paths))


def test_endings():
    section = PAGE[PAGE.index('## Files') : PAGE.index('in letters of any')]
    assert set(re.findall(r'`(\.\w+)`', section)) == set(PICTURES)


def test_all_rows_are_there():
    titles = ('Images', 'Masks', 'A mask and its image')
    assert [len(rows(title)) for title in titles] == [14, 14, 6]


def test_few_bits_are_told_of_once(monkeypatch):
    lines = []
    monkeypatch.setattr(LoadImageStrict, '_told', False)
    monkeypatch.setattr(
        'vcmamba_mm.data.reading.print_log',
        lambda *args: lines.append(args[0]),
    )
    Image.fromarray(np.zeros((4, 6), np.uint8)).save('a.png')
    load(dict(type='LoadImageStrict'), img_path='a.png')
    assert not lines
    Image.fromarray(np.full((4, 6), 4095, np.uint16)).save('a.png')
    for _ in range(2):
        load(dict(type='LoadImageStrict'), img_path='a.png')
    (line,) = lines
    assert 'image a.png is nearly black' in line
    assert 'its largest value is 4095' in line


def test_black_jpegs_by_turbojpeg(monkeypatch):
    """Which refuses 'unchanged'; the package may not be there."""
    monkeypatch.setattr(
        'mmcv.image.io.jpeg',
        SimpleNamespace(decode=lambda *_: np.zeros((4, 6, 3), np.uint8)),
    )
    monkeypatch.setattr('mmcv.image.io.TJPF_BGR', 1, raising=False)
    Image.new('RGB', (6, 4)).save('a.jpg')
    loading = dict(type='LoadImageStrict', imdecode_backend='turbojpeg')
    assert not load(loading, img_path='a.jpg')['img'].any()


def test_what_is_decoded_in_colours_only(monkeypatch):
    def decode(content, color_type, backend):
        if color_type == 'unchanged':
            raise DecodeError
        return np.zeros((4, 6, 3), np.uint8), 1

    monkeypatch.setattr('vcmamba_mm.data.reading.decode_image', decode)
    Image.new('RGB', (6, 4)).save('a.png')
    image = load(dict(type='LoadImageStrict'), img_path='a.png')['img']
    assert not image.any()
