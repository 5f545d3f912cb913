"""Decoding of images, and what has to be known of them before."""

import os
import struct
import zlib
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from mmcv.image import imfrombytes
from mmcv.image import io as mmcv_io
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_EOI = b'\xff\xd9'
_EXIF = b'Exif\x00\x00'
_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274  # TIFF's tags, and Exif's
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
# Exif's orientations
_FLIPPED, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)
_INVERSE = {6: 8, 8: 6}  # the others undo themselves

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_MORE_PIXELS = (
    ': if it really is, VCMAMBA_MM_MAX_PIXELS=N in the environment allows N '
    'pixels'
)
# Of PNG and JPEG. PNG has most: a 1032th, and 8 pixels in a byte.
_MANY_PIXELS, _MOST_PIXELS_PER_BYTE = 2**24, 10_000

# What mmcv, OpenCV and Pillow raise while they look at damaged bytes.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    cv2.error,
    struct.error,
    zlib.error,
)

# The limit of all decoding is Pillow's, which refuses twice this number.
if 'VCMAMBA_MM_MAX_PIXELS' in os.environ:
    Image.MAX_IMAGE_PIXELS = int(os.environ['VCMAMBA_MM_MAX_PIXELS']) // 2


class DecodeError(ValueError):
    """An image that is cut off, damaged, or of no known format."""


class KindError(DecodeError):
    """An image of a kind that is not read; it says what to do."""


class JpegHeader(NamedTuple):
    """What has to be known of a JPEG before decoding.

    Attributes:
        height: Rows in the file.
        width: Columns in the file.
        orientation: How to turn the image, Exif's numbers; 1 is as it is.
        height_at: Where the height stands in the file, two bytes.
        in_order: Whether all of a row comes before the next row, unlike in
            progressive files.
        subsampled: Whether colours have fewer rows than the brightness.
        gray: Whether there is the brightness only.
    """

    height: int
    width: int
    orientation: int
    height_at: int
    in_order: bool
    subsampled: bool
    gray: bool


def _uint16(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 2], 'big')


def _orientation(exif: bytes) -> int:
    """Find the orientation in the TIFF structure that Exif is."""
    order = {b'II': 'little', b'MM': 'big'}.get(exif[:2])
    if order is None:
        return 1
    at = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[at : at + 2], order)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if int.from_bytes(exif[entry : entry + 2], order) == _ORIENTATION:
            value = int.from_bytes(exif[entry + 8 : entry + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def read_jpeg_header(content: bytes) -> JpegHeader | None:
    """Read the header of a JPEG (ITU-T T.81, annex B).

    Args:
        content: The file.

    Returns:
        JpegHeader | None: None if it is something else, or a JPEG that has
        other than one or three colours with 8 bits.

    Raises:
        DecodeError: If the file is cut off.
    """
    if content[:2] != b'\xff\xd8':
        return None
    at, orientation, frame = 2, 1, None
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + _uint16(content, at + 2)
        if marker == 0xE1 and content[at + 4 : at + 10] == _EXIF:
            orientation = _orientation(content[at + 10 : end])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, frame_at = content[at:end], at
        elif marker == 0xDA:
            break
        at = end
    else:
        raise DecodeError('the header is cut off or damaged')
    if content.rfind(_EOI, at + 5) < 0:
        raise DecodeError('it is cut off')
    if frame is None or frame[1] > 0xC2 or len(frame) < 10 or frame[4] != 8:
        return None
    height, width, colours = _uint16(frame, 5), _uint16(frame, 7), frame[9]
    if colours not in (1, 3) or len(frame) < 10 + 3 * colours:
        return None
    factors = {frame[11 + 3 * i] & 15 for i in range(colours)}
    return JpegHeader(
        height,
        width,
        orientation,
        frame_at + 5,
        # Another number of colours here means that others follow later.
        frame[1] != 0xC2 and content[at + 4] == colours,
        len(factors) > 1,
        colours == 1,
    )


class Header(NamedTuple):
    """What has to be known of an image before decoding.

    Attributes:
        height: Rows in the file.
        width: Columns in the file.
        orientation: How to turn the image, Exif's numbers; 1 is as it is.
        format: Pillow's name of the format.
        mode: Pillow's name of what a pixel is; '' if it has none.
    """

    height: int
    width: int
    orientation: int
    format: str
    mode: str


def check_size(format: str, height: int, width: int, num_bytes: int) -> None:
    """Look whether there may be so many pixels, before they are waited for."""
    limit = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    if limit and height * width > limit:
        raise KindError(
            f'is too large ({width} x {height} pixels, the limit is {limit})'
            f'{_MORE_PIXELS}'
        )
    most = max(_MANY_PIXELS, _MOST_PIXELS_PER_BYTE * num_bytes)
    if format in ('PNG', 'JPEG') and height * width > most:
        raise DecodeError(
            f'{num_bytes} bytes cannot be {width} x {height} pixels'
        )


def _read_with_pillow(content: bytes) -> Header:
    try:
        with Image.open(BytesIO(content)) as picture:
            if picture.format != 'TIFF':
                orientation = 1
                # Without one, Pillow would decode a PNG in search of it.
                if picture.format != 'PNG' or b'eXIf' in content:
                    orientation = picture.getexif().get(_ORIENTATION, 1)
                width, height = picture.size
                return Header(
                    height, width, orientation, picture.format, picture.mode
                )
            mode = picture.mode
    except UnidentifiedImageError:
        if content[:4] not in _TIFF:
            raise
        mode = ''
    # Not with Pillow's size, which is the turned one, or none at all if there
    # are more channels than it knows.
    file = BytesIO(content)
    tags = ImageFileDirectory_v2(file.read(16 if content[2] == 43 else 8))
    file.seek(tags.next)
    tags.load(file)
    height, width = int(tags[_HEIGHT]), int(tags[_WIDTH])
    return Header(height, width, tags.get(_ORIENTATION, 1), 'TIFF', mode)


def _check_chunks(content: bytes) -> None:
    """Look for chunks longer than a PNG; OpenCV makes room for any length."""
    at = 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], 'big')
        name = content[at + 4 : at + 8]
        at += 12 + length
        if name == b'IEND':
            break
    if at > len(content):
        raise DecodeError('it is cut off')


def read_header(content: bytes) -> Header:
    """Look at an image without decoding it.

    Raises:
        DecodeError: If the format is not known, or the header is damaged, or
            has more pixels than ``VCMAMBA_MM_MAX_PIXELS`` in the environment
            allows (by default twice Pillow's ``MAX_IMAGE_PIXELS``, 179
            million).
    """
    jpeg = read_jpeg_header(content)
    if jpeg is not None:
        check_size('JPEG', jpeg.height, jpeg.width, len(content))
        return Header(*jpeg[:3], 'JPEG', 'L' if jpeg.gray else 'RGB')
    try:
        header = _read_with_pillow(content)
    except UnidentifiedImageError as error:
        raise DecodeError('it cannot be decoded, nor its header') from error
    except _BOMBS as error:
        raise KindError(f'is too large ({error}){_MORE_PIXELS}') from error
    except DECODER_ERRORS as error:
        raise DecodeError(f'the header is damaged ({error})') from error
    check_size(header.format, header.height, header.width, len(content))
    if header.format == 'PNG':
        _check_chunks(content)
    if header.orientation not in range(1, 9):
        header = header._replace(orientation=1)
    return header


def check_options(color_type: str, backend: str | None) -> None:
    """Look for options of ``decode_image`` that no file could be read with.

    Raises:
        ValueError: If there is no such option.
        ImportError: If a package is missing.
    """
    for name, value, values in (
        ('color_type', color_type, [*mmcv_io.imread_flags]),
        ('imdecode_backend', backend, [None, *mmcv_io.supported_backends]),
    ):
        if value not in values:
            raise ValueError(f'{name} must be in {values}, got {value!r}')
    if backend == 'tifffile' and mmcv_io.tifffile is None:
        raise ImportError(
            "imdecode_backend='tifffile' needs the package tifffile: pip "
            'install tifffile'
        )


def decode_or_none(content: bytes, flag: int) -> np.ndarray | None:
    """OpenCV's ``imdecode``, None for whatever it cannot decode."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:  # empty, or too large
        return None


def _check_depth(wrong: bool, kind: object) -> None:
    if wrong:
        raise KindError(
            f'has pixels of {kind}: save it with 8 bits for each colour'
        )


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image as its Exif orientation says."""
    if orientation == 1:
        return image
    if orientation > 4:
        image = image.swapaxes(0, 1)
    if orientation in _FLIPPED:
        image = image[::-1]
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def decode_image(
    content: bytes, color_type: str = 'color', backend: str | None = 'cv2'
) -> tuple[np.ndarray, int]:
    """Decode an image, turned as its Exif orientation says.

    OpenCV and Pillow turn other formats from version to version. Here the
    orientation of JPEG, PNG, WebP and TIFF is followed by 'color' and
    'grayscale', and by nothing else; the backends turbojpeg and tifffile
    know of none.

    Args:
        content: The file.
        color_type: As of mmcv's ``imfrombytes``.
        backend: As of mmcv's ``imfrombytes``.

    Returns:
        tuple: The image, (height, width) or (height, width, channels), BGR,
        and the orientation it was turned by, 1 if it is as it is stored.

    Raises:
        DecodeError: If it is cut off, damaged, or not of a kind that is read.
    """
    header = read_header(content)
    turned, stored_is_turned = 1, 1
    flag = color_type
    if backend in (None, 'cv2', 'pillow'):
        if color_type in ('color', 'grayscale') and header.orientation > 1:
            turned = header.orientation
            flag = f'{color_type}_ignore_orientation'
        if header.format == 'TIFF':  # those are turned whatever the flag
            stored_is_turned = header.orientation
        if backend == 'pillow' and color_type != 'unchanged':
            _check_depth(header.mode.startswith(('I', 'F')), header.mode)
    try:
        image = imfrombytes(content, flag=flag, backend=backend)
    except DECODER_ERRORS as error:
        raise DecodeError(f'it cannot be decoded ({error})') from error
    if image is None:
        raw = decode_or_none(content, cv2.IMREAD_UNCHANGED)
        _check_depth(raw is not None, getattr(raw, 'dtype', None))
        raise DecodeError('it cannot be decoded')
    image = turn(image, _INVERSE.get(stored_is_turned, stored_is_turned))
    wrong = image.ndim not in (2, 3) or image.shape[:2] != header[:2]
    if wrong or (color_type.startswith('color') and image.shape[2:] != (3,)):
        raise DecodeError('it has another size than its header says')
    return turn(image, turned), turned
