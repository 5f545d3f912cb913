"""Partial decoding against decoding everything."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vcmamba_mm.data import cropping, decoding
from vcmamba_mm.data.cropping import open_picture
from vcmamba_mm.data.decoding import DecodeError
from vcmamba_mm.data.reading import LoadImageStrict


def scene(height, width, seed=0):
    """A smooth picture with edges, (height, width, 3), BGR."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (width // 2, height // 3), height // 4, (9, 200, 80), -1)
    return image


def encode(image, mode='RGB', orientation=None, **kwargs):
    picture = Image.fromarray(image[..., ::-1]).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    content = io.BytesIO()
    picture.save(content, 'JPEG', quality=92, exif=exif, **kwargs)
    return content.getvalue()


def decode(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


FLAGS = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
KINDS = {
    '4:4:4': dict(subsampling=0),
    '4:2:2': dict(subsampling=1),
    '4:2:0': dict(subsampling=2),
    'gray': dict(mode='L'),
    'progressive': dict(progressive=True),
    'restarts': dict(restart_marker_rows=1),
    'CMYK': dict(mode='CMYK'),
    **{f'orientation {i}': dict(orientation=i) for i in range(1, 9)},
}


@pytest.fixture(params=['simplejpeg', 'opencv'])
def decoder(request, monkeypatch):
    if request.param == 'opencv':
        monkeypatch.setattr(cropping, 'simplejpeg', None)
    elif cropping.simplejpeg is None:
        pytest.skip('needs simplejpeg')


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_a_crop_is_that_of_the_whole_picture(decoder, kind):
    content = encode(scene(117, 171), **kind)
    whole = decode(content)
    picture = open_picture(content)
    height, width = picture.shape
    assert (height, width) == whole.shape[:2]
    for box in (
        (0, 0, height, width),
        (0, 0, 1, 1),
        (5, 9, 40, 61),
        (33, 2, 31, 100),
        (height - 20, width - 30, 20, 30),
    ):
        top, left, h, w = box
        crop = picture.crop(box, (224, 224))
        assert np.array_equal(crop, whole[top : top + h, left : left + w])


@pytest.mark.parametrize('subsampling', [0, 1, 2])
@pytest.mark.parametrize('scale', [1, 2, 4])
def test_every_last_row(decoder, subsampling, scale):
    content = encode(scene(90, 40), subsampling=subsampling)
    flag = FLAGS.get(scale, cv2.IMREAD_COLOR)
    whole = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    picture = open_picture(content)
    for top in range(0, 82, 2 * scale - 1):
        for bottom in range(top + 8, 91, 2):
            size = ((bottom - top) // scale, 40 // scale)
            crop = picture.crop((top, 0, bottom - top, 40), size)
            first, last = (
                (2 * y + scale) // (2 * scale) for y in (top, bottom)
            )
            assert np.array_equal(crop, whole[first:last])


@pytest.mark.parametrize(
    'kind, rows', [('4:4:4', 64), ('4:2:0', 66), ('progressive', 256)]
)
def test_rows_below_are_not_decoded(monkeypatch, kind, rows):
    simplejpeg = pytest.importorskip('simplejpeg')
    shapes = []

    def decode_jpeg(*args, **kwargs):
        image = decode_all(*args, **kwargs)
        shapes.append(image.shape)
        return image

    decode_all = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', decode_jpeg)
    content = encode(scene(256, 256), **KINDS[kind])
    open_picture(content).crop((14, 0, 50, 256), (224, 224))
    assert shapes == [(rows, 256, 3)]


def test_no_output_of_the_decoder(capfd):
    """libjpeg complains on stderr of what follows the last row."""
    open_picture(encode(scene(90, 40))).crop((20, 0, 20, 20), (20, 20))
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('scale', FLAGS)
@pytest.mark.parametrize('subsampling', [0, 2])
@pytest.mark.parametrize('orientation', [1, 6])
def test_large_crops_are_decoded_smaller(
    decoder, scale, subsampling, orientation
):
    image = scene(331, 467)
    content = encode(image, subsampling=subsampling, orientation=orientation)
    size = (280 // scale, 200 // scale)
    box = (21, 13, 300, 230)
    crop = open_picture(content).crop(box, size)
    whole = cv2.imdecode(np.frombuffer(content, np.uint8), FLAGS[scale])
    top, left, bottom, right = (
        (2 * edge + scale) // (2 * scale) for edge in (21, 13, 321, 243)
    )
    assert np.array_equal(crop, whole[top:bottom, left:right])
    # and what it shows is the crop of the full size, up to half a pixel, or
    # one where a turned picture does not end with a whole block
    full = decode(content)[21:321, 13:243]
    shown = cv2.resize(full, crop.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shown.ravel(), crop.ravel())[0, 1] > 0.98


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_crop_is_enlarged_that_would_not_be(data):
    """The pixels that are wanted are there, unless they never were."""
    height = data.draw(st.integers(1, 150), 'height')
    width = data.draw(st.integers(1, 150), 'width')
    size = data.draw(st.tuples(st.integers(1, 80), st.integers(1, 80)), 'size')
    top = data.draw(st.integers(0, height - 1), 'top')
    left = data.draw(st.integers(0, width - 1), 'left')
    h = data.draw(st.integers(1, height - top), 'h')
    w = data.draw(st.integers(1, width - left), 'w')
    picture = open_picture(encode(np.full((height, width, 3), 90, np.uint8)))
    crop = picture.crop((top, left, h, w), size)
    for got, whole, wanted in zip(crop.shape, (h, w), size):
        assert min(whole, wanted) <= got <= whole
    # as small as it may be: half of it would be too little
    if min(h // 2 - size[0], w // 2 - size[1]) >= 0:
        assert crop.shape[0] <= -(-h // 2) and crop.shape[1] <= -(-w // 2)


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.webp'])
def test_other_formats(suffix):
    content = cv2.imencode(suffix, scene(40, 50))[1].tobytes()
    picture = open_picture(content)
    crop = picture.crop((3, 4, 20, 30), (8, 8))
    assert np.array_equal(crop, decode(content)[3:23, 4:34])


def test_ppm():
    image = scene(40, 50)
    content = cropping.encode_ppm(image)
    assert np.array_equal(decode(content), image)  # OpenCV reads it
    picture = open_picture(content)
    assert picture.shape == (40, 50)
    assert np.array_equal(
        picture.crop((3, 4, 20, 30), (8, 8)), image[3:23, 4:34]
    )
    jpeg = encode(image)
    assert np.array_equal(cropping.decode_jpeg(jpeg), decode(jpeg))
    assert cropping.decode_jpeg(content) is None
    # In a PPM nothing would tell that masks of it have to be turned.
    assert cropping.decode_jpeg(encode(image, orientation=3)) is None


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiff_files_that_pillow_may_not_know(channels, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 999, (9, 7, channels)).astype(dtype)
    content = cv2.imencode('.tif', image)[1].tobytes()
    read, turned = decoding.decode_image(content, 'unchanged')
    assert turned == 1
    assert np.array_equal(read.reshape(image.shape), image)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_turned_as_pillow_turns(format, orientation, backend):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    lossless = dict(lossless=True) if format == 'WEBP' else {}
    picture = Image.fromarray(scene(24, 33)[..., ::-1])
    picture.save(content, format, exif=exif, **lossless)
    content = content.getvalue()
    image, turned = decoding.decode_image(content, backend=backend)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    difference = image[..., ::-1].astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= (12 if format == 'JPEG' else 0)
    assert turned == orientation
    crop = open_picture(content).crop((3, 5, 16, 12), (8, 8))
    assert np.abs(crop.astype(int) - image[3:19, 5:17]).max() <= 12


@pytest.mark.parametrize(
    'options',
    [
        dict(color_type='colour'),
        dict(imdecode_backend='cv'),
        dict(imdecode_backend='tifffile'),
    ],
)
def test_wrong_options_are_no_damaged_files(monkeypatch, options):
    monkeypatch.setattr(decoding.mmcv_io, 'tifffile', None)
    with pytest.raises((ValueError, ImportError), match='must be in|needs'):
        LoadImageStrict(**options)


JPEG = encode(scene(60, 80))


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'cannot be decoded'),
        (b'not a picture', 'cannot be decoded'),
        (JPEG[:2], 'header is cut off'),
        (JPEG[:150], 'header is cut off'),
        (JPEG[: len(JPEG) // 2], 'cut off'),
        (JPEG[:-2], 'cut off'),
        (b'\xff\xd8' + bytes(100), 'header is cut off or damaged'),
        (b'P6\n9 9\n255\n' + bytes(242), 'cut off'),
    ],
)
def test_damage_is_noticed(decoder, content, message):
    with pytest.raises(DecodeError, match=message):
        picture = open_picture(content)
        picture.crop((0, 0, *picture.shape), picture.shape)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(['4:2:0', 'gray', 'progressive', 'orientation 6']),
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    in_header=st.booleans(),
)
def test_damaged_files_give_a_crop_or_one_error(kind, changes, in_header):
    content = bytearray(encode(scene(60, 80), **KINDS[kind]))
    end = content.index(b'\xff\xda') + 14 if in_header else len(content)
    for place, value in changes:
        content[int(place * (end - 1))] = value
    try:
        picture = open_picture(bytes(content))
        height, width = picture.shape
        if height * width > 10**6:
            return
        box = (height // 3, width // 4, -(-height // 2), -(-width // 2))
        crop = picture.crop(box, (224, 224))
    except DecodeError:
        return
    assert crop.shape == (*box[2:], 3) and crop.dtype == np.uint8
