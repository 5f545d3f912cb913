"""Masks: their sizes and orientations, in every loop."""

import numpy as np
import pytest
from mask_files import LOOPS, ORIENTATION, check, encode, photo, reader
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image, ImageOps

from vcmamba_mm.data.archives import write_tar
from vcmamba_mm.data.masks import MaskError
from vcmamba_mm.data.reading import AnnotationError

pytest.importorskip('mmseg')


@pytest.fixture
def read(tmp_path):
    return reader(tmp_path)


def turned(labels, orientation):
    """As Pillow turns it."""
    picture = Image.fromarray(labels)
    picture.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


ONE_WAY = (2, 3, 4)


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_pixels_of_picture_and_mask_agree(
    read, tmp_path, format, orientation, color_type
):
    """Or nothing is read: whichever way the mask was drawn."""
    picture, stored = photo(32, 48, orientation, format)
    shown = turned(stored, orientation)
    ignored = color_type != 'color'
    results = TRANSFORMS.build(
        dict(type='LoadImageStrict', color_type=color_type)
    )(dict(img_path=write(tmp_path, picture)))
    image = np.rint(results['img'][..., 0] / 60)
    expected = stored if ignored else shown
    assert (image == expected).mean() > 0.95  # but for JPEG's edges
    for mask, as_shown in ((stored, False), (shown, True)):
        options = dict(color_type=color_type, as_shown=as_shown)
        if mask.shape != expected.shape:
            with pytest.raises(MaskError, match='mask .* is .* pixels, imag'):
                read(encode(mask), picture, **options)
            continue
        if orientation in ONE_WAY and not ignored and not as_shown:
            with pytest.raises(MaskError, match='set as_shown=True in Load'):
                read(encode(mask), picture, **options)
            continue
        if np.array_equal(mask, expected):
            labels = check(read(encode(mask), picture, **options), 'val', 4)
            assert labels == expected.tolist()


def write(folder, content):
    (folder / 'picture').write_bytes(content)
    return str(folder / 'picture')


def test_an_orientation_that_explains_the_sizes(read):
    picture, stored = photo(32, 48, 6)
    with pytest.raises(MaskError) as caught:
        read(encode(stored), picture, as_shown=True)
    message = str(caught.value)
    for words in (
        'mask.png is 48 x 32 pixels, image ',
        '/picture 32 x 48, turned by its Exif orientation 6',
        "color_type='color_ignore_orientation'",
    ):
        assert words in message
    assert '\n' not in message


def test_a_square_does_not_tell_its_orientation(read):
    picture, stored = photo(32, 32, 6)
    with pytest.raises(MaskError, match='Exif orientation 6, and the size'):
        read(encode(stored), picture)
    labels = check(read(encode(stored), picture, as_shown=True), num_classes=4)
    assert labels == stored.tolist()


def test_a_mask_with_an_orientation(read):
    _, stored = photo(32, 48)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    with pytest.raises(MaskError, match=r'to be turned \(Exif orientation 3'):
        read(encode(stored, exif=exif))


@pytest.mark.parametrize(
    'size', [(30, 48), (32, 46), (32, 40), (48, 32), (16, 16)]
)
def test_masks_of_something_else(read, size):
    picture, _ = photo(32, 48)
    message = (
        rf'mask.png is {size[1]} x {size[0]} pixels, image .* 48 x 32: '
        'they must show the same'
    )
    with pytest.raises(MaskError, match=message):
        read(encode(np.zeros(size, np.uint8)), picture)


@pytest.mark.parametrize('factor', [2, 4])
def test_smaller_and_larger_masks_are_scaled(read, factor):
    """As Pillow scales to the nearest, for whole factors."""
    picture, _ = photo(32, 48)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 4, (32 // factor, 48 // factor), dtype=np.uint8)
    expected = small.repeat(factor, 0).repeat(factor, 1)
    for loop in LOOPS:
        assert check(read(encode(small), picture), loop, 4) == (
            expected.tolist()
        )
    large = expected.repeat(factor, 0).repeat(factor, 1)
    assert check(read(encode(large), picture), num_classes=4) == (
        expected.tolist()
    )


def test_scaled_up_to_a_pixel(read):
    picture, _ = photo(101, 77)
    for size in ((50, 38), (51, 39), (51, 38), (303, 231)):
        sample = read(encode(np.ones(size, np.uint8)), picture)
        assert sample.gt_sem_seg.data.shape == (1, 101, 77)


@pytest.mark.parametrize('where', ['folder', 'prefix', 'backend_args'])
def test_the_run_stops_wherever_the_files_are(tmp_path, where):
    """Nothing takes the place of a mask that does not fit."""
    init_default_scope('mmseg')
    picture, stored = photo(32, 48, 3)
    write_tar(
        iter([('a.jpg', picture), ('a.png', encode(stored))]), tmp_path / 'tar'
    )
    root, options = f'{tmp_path}/tar', {}
    if where == 'folder':
        root = str(tmp_path)
        (tmp_path / 'a.jpg').write_bytes(picture)
        (tmp_path / 'a.png').write_bytes(encode(stored))
    elif where == 'prefix':
        root = f'tar://{root}'
    else:
        options = dict(backend_args=dict(backend='tar'))

    def results(as_shown):
        steps = [
            dict(type='LoadImageStrict', **options),
            dict(type='LoadMaskStrict', as_shown=as_shown, **options),
        ]
        return TRANSFORMS.build(
            dict(type='ReplaceUnreadable', transform=steps)
        )(dict(img_path=f'{root}/a.jpg', seg_map_path=f'{root}/a.png'))

    assert np.array_equal(results(True)['gt_seg_map'], stored)
    with pytest.raises(MaskError, match='a.jpg is turned by its Exif orient'):
        results(False)


@pytest.mark.parametrize('size', [(32, 48), (48, 32), (48, 48), (1, 1)])
def test_boxes_on_the_stored_pixels(tmp_path, size):
    """COCO's files have the height and width that boxes are drawn on."""
    picture, stored = photo(32, 48, 6)
    results = dict(img_path=write(tmp_path, picture))
    results['height'], results['width'] = size
    loading = TRANSFORMS.build(dict(type='LoadImageStrict'))
    if size != stored.shape:
        assert loading(results)['img'].shape == (48, 32, 3)
        return
    with pytest.raises(AnnotationError, match="set color_type='color_ignore"):
        loading(results)
    loading.color_type = 'color_ignore_orientation'
    assert loading(results)['img'].shape == (32, 48, 3)
