"""Files with bytes changed at random: read, or refused with one error."""

import io
import multiprocessing
import random
import struct
import time

import numpy as np
import pytest
from mmengine import fileio
from PIL import Image

from vcmamba_mm.data.archives import (
    ArchiveError,
    LmdbPathBackend,
    TarBackend,
    index_tar,
    write_lmdb,
    write_tar,
)
from vcmamba_mm.data.cropping import encode_ppm, open_picture
from vcmamba_mm.data.decoding import DecodeError, decode_image
from vcmamba_mm.data.masks import LoadMaskStrict, MaskError, read_mask
from vcmamba_mm.data.reading import ImageReadError, LoadImageStrict

# Pillow's words about each tag that is wrong
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:PIL')
SHAPE = (24, 20)


def encode(array, format, mode=None, orientation=None, **kwargs):
    picture = Image.fromarray(array)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
        kwargs['exif'] = exif
    content = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(
        content, format, **kwargs
    )
    return content.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
LABELS = np.random.default_rng(0).integers(0, 4, SHAPE, dtype=np.uint8)
PICTURES = {
    **{f: encode(PIXELS, f) for f in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP')},
    'PPM': encode_ppm(PIXELS),
    'grey JPEG': encode(PIXELS, 'JPEG', 'L'),
    'progressive JPEG': encode(PIXELS, 'JPEG', progressive=True),
    'CMYK JPEG': encode(PIXELS, 'JPEG', 'CMYK'),
    'packed TIFF': encode(PIXELS, 'TIFF', compression='tiff_lzw'),
    'palette PNG': encode(LABELS, 'PNG', 'P'),
    **{
        f'turned {f}': encode(PIXELS, f, orientation=6)
        for f in ('JPEG', 'PNG', 'WEBP', 'TIFF')
    },
}
MASKS = {
    **{f: encode(LABELS, f) for f in ('PNG', 'TIFF', 'BMP', 'GIF', 'PPM')},
    'palette': encode(LABELS, 'PNG', 'P'),
    'bits': encode(LABELS, 'PNG', '1'),
    'colours': encode(PIXELS, 'PNG'),
    'alpha': encode(LABELS, 'PNG', 'LA'),
    '16 bits': encode(LABELS.astype(np.uint16), 'PNG'),
    '32 bits': encode(LABELS.astype(np.int32), 'TIFF'),
    'floats': encode(LABELS.astype(np.float32), 'TIFF'),
    'packed TIFF': encode(LABELS, 'TIFF', compression='tiff_lzw'),
}


def damage(content, dice):
    """Change some bytes, every other time in the header; cut a fifth off."""
    content = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        end = dice.choice((len(content), min(64, len(content))))
        at = dice.randrange(end)
        content[at] = dice.choice(
            (0, 255, dice.randrange(256), content[at] ^ 1 << dice.randrange(8))
        )
    if dice.random() < 0.2:
        del content[dice.randrange(len(content)) :]
    return bytes(content)


def crop(content):
    picture = open_picture(content)
    height, width = picture.shape
    part = picture.crop((height // 2, width // 3, -(-height // 2), 1), (8, 8))
    assert part.shape == (-(-height // 2), 1, 3)
    return part


READERS = {
    'whole image': (PICTURES, lambda c: decode_image(c)[0]),
    'whole image by Pillow': (
        PICTURES,
        lambda c: decode_image(c, backend='pillow')[0],
    ),
    'crop': (PICTURES, crop),
    'mask': (MASKS, lambda c: read_mask(c, 'mask')[..., None]),
    'mask by OpenCV': (MASKS, lambda c: read_mask(c, 'm', 'cv2')[..., None]),
}


@pytest.mark.parametrize('reader', READERS)
def test_pictures_and_masks(reader):
    files, read = READERS[reader]
    dice = random.Random(reader)
    num_read, num = 0, 1500
    for name in dice.choices(list(files), k=num):
        content = damage(files[name], dice)
        try:
            array = read(content)
        except (DecodeError, MaskError) as error:
            assert str(error)
        else:
            assert array.ndim == 3 and array.size
            is_picture = 'mask' not in reader
            assert array.dtype in (
                np.uint8,
                np.uint8 if is_picture else np.int32,
            )
            assert array.shape[2] == (3 if is_picture else 1)
            num_read += 1
    assert num / 20 < num_read < num * 3 / 4  # both are tried


@pytest.mark.parametrize(
    'loading, key',
    [
        (LoadImageStrict(), 'img_path'),
        (LoadImageStrict(imdecode_backend='pillow'), 'img_path'),
        (LoadMaskStrict(), 'seg_map_path'),
    ],
)
def test_the_error_of_the_transforms(tmp_path, loading, key):
    """ReplaceUnreadable takes another picture on this one only."""
    path = tmp_path / 'file'
    for content in (b'', PICTURES['PNG'][:200], PICTURES['TIFF'][:-9]):
        path.write_bytes(content)
        with pytest.raises(ImageReadError, match=f'{path} cannot be read'):
            loading.transform({key: str(path)})


def huge(format, side):
    """A small file whose header claims ``side`` pixels each way."""
    content = bytearray(PICTURES[format])
    if format == 'PNG':
        struct.pack_into('>II', content, 16, side, side)
    elif format == 'BMP':
        struct.pack_into('<ii', content, 18, side, side)
    elif format == 'JPEG':
        at = content.index(b'\xff\xc0') + 5
        struct.pack_into('>HH', content, at, side, side)
    else:
        return b'P6\n%d %d\n255\n' % (side, side) + bytes(100)
    return bytes(content)


@pytest.mark.parametrize('side', [6000, 13000, 40000])
@pytest.mark.parametrize('format', ['PNG', 'BMP', 'JPEG', 'PPM'])
@pytest.mark.parametrize('reader', READERS)
def test_claims_of_many_pixels(reader, format, side):
    """Decoding 13 000 x 13 000 pixels would take half a GB, and seconds."""
    content = huge(format, side)
    begin = time.process_time()
    with pytest.raises((DecodeError, MaskError)):
        READERS[reader][1](content)
    assert time.process_time() - begin < 0.3


@pytest.mark.parametrize(
    'format, mode, options',
    [
        ('WEBP', 'RGB', dict(lossless=True)),
        ('TIFF', '1', dict(compression='group4')),
        ('PNG', 'L', {}),
        ('JPEG', 'L', dict(optimize=True)),
    ],
)
def test_blank_pictures(format, mode, options):
    """Lossless WebP and group 4 have 20 000 pixels in a byte and more."""
    file = io.BytesIO()
    Image.new(mode, (5000, 5000)).save(file, format, **options)
    image, _ = decode_image(file.getvalue())
    assert image.shape == (5000, 5000, 3) and not image.any()


def test_the_limit_is_named_and_can_be_raised(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    path.write_bytes(PICTURES['PNG'])
    loading = LoadImageStrict()
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24 * 20 // 2 - 1)
    message = 'a.png is too large .* VCMAMBA_MM_MAX_PIXELS=N in the environ'
    with pytest.raises(ImageReadError, match=message):
        loading.transform(dict(img_path=str(path)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24 * 20 // 2)
    image = loading.transform(dict(img_path=str(path)))['img']
    assert np.array_equal(image[..., ::-1], PIXELS)


# ------------------------------------------------------------------ archives

FILES = [(f'train/{i % 7}/{i:03}.jpg', bytes([i]) * 90 * i) for i in range(60)]


def read_all(where, backend):
    """Read what an archive holds; True if it is all of it, unchanged."""
    backend._opened.clear()
    try:
        found = list(
            fileio.list_dir_or_file(where, list_dir=False, recursive=True)
        )
        names = [name for name, _ in FILES]
        contents = [fileio.get(f'{where}/{name}') for name in names]
    except (ArchiveError, FileNotFoundError) as error:
        assert str(error)
        return False
    return found == sorted(names) and contents == [c for _, c in FILES]


@pytest.mark.parametrize('file', ['index.npy', 'shards.json'])
def test_index_of_tar_files(tmp_path, file):
    write_tar(iter(FILES), tmp_path / 'tar')
    where = f'tar://{tmp_path}/tar'
    assert read_all(where, TarBackend)
    dice = random.Random(file)
    path = tmp_path / 'tar' / file
    content = path.read_bytes()
    outcomes = []
    for _ in range(200):
        path.write_bytes(damage(content, dice))
        outcomes.append(read_all(where, TarBackend))
    assert not all(outcomes)
    if file == 'index.npy':  # only what the changes left as it was
        assert outcomes.count(True) < 20


def test_an_index_without_a_checksum(tmp_path):
    """As earlier versions wrote it."""
    write_tar(iter(FILES), tmp_path / 'tar')
    path = tmp_path / 'tar/shards.json'
    text = path.read_text()
    path.write_text(text[: text.index(',\n "crc32"')] + '\n}')
    where = f'tar://{tmp_path}/tar'
    assert read_all(where, TarBackend)
    dice = random.Random(0)
    path = tmp_path / 'tar/index.npy'
    content = path.read_bytes()
    for _ in range(200):
        path.write_bytes(damage(content, dice))
        read_all(where, TarBackend)


def test_tar_files(tmp_path):
    """Every file that has been indexed is read as it is in the tar file."""
    write_tar(iter(FILES), tmp_path / 'tar')
    path = tmp_path / 'tar/000000.tar'
    content = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(100):
        changed = bytearray(content)
        header = content.index(dice.choice(FILES)[0].encode())
        changed[header + dice.randrange(512)] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            # None is left out since another's header is damaged.
            assert index_tar(tmp_path / 'tar') == len(FILES)
        except ArchiveError as error:
            assert '000000.tar' in str(error)
            refused += 1
    assert refused > 50


def test_several_tar_files_in_one(tmp_path):
    write_tar(iter(FILES[:30]), tmp_path / 'a')
    write_tar(iter(FILES[30:]), tmp_path / 'b')
    first, second = (tmp_path / f'{name}/000000.tar' for name in 'ab')
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ArchiveError, match='damaged at byte .*several tar'):
        index_tar(tmp_path / 'a')


def damage_lmdb(folder, num):
    path = folder / 'data.mdb'
    content = path.read_bytes()
    where = f'lmdb://{folder}'
    assert read_all(where, LmdbPathBackend)
    dice = random.Random(0)
    outcomes = []
    for i in range(num):
        changed = bytearray(content)
        page = 4096 * dice.randrange(len(content) // 4096)
        for _ in range(dice.choice((1, 4, 16))):
            changed[page + dice.randrange(64)] = dice.randrange(256)
        if i % 4 == 0:
            del changed[dice.randrange(len(changed)) :]
        path.unlink()  # the one that is mapped must not change
        path.write_bytes(changed)
        outcomes.append(read_all(where, LmdbPathBackend))
    assert not all(outcomes) and any(outcomes)


def test_lmdb(tmp_path):
    """In a process of its own, which reading beyond its end would kill."""
    pytest.importorskip('lmdb')
    write_lmdb(iter(FILES), tmp_path / 'lmdb')
    process = multiprocessing.get_context('fork').Process(
        target=damage_lmdb, args=(tmp_path / 'lmdb', 200)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
