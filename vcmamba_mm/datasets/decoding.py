"""Decoding of what a crop needs of a picture, no more."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

try:
    import simplejpeg
except ImportError:  # rows below the crop are decoded then
    simplejpeg = None

Box = tuple[int, int, int, int]  # top, left, height, width

_SCALES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_EOI = b'\xff\xd9'
_EXIF = b'Exif\x00\x00'
_ORIENTATION = 0x0112
_PPM = re.compile(rb'P6\n(\d+) (\d+)\n255\n')


class DecodeError(ValueError):
    """A picture that is cut off, damaged, or of no known format."""


class JpegHeader(NamedTuple):
    """What has to be known of a JPEG before decoding.

    Attributes:
        height: Rows in the file.
        width: Columns in the file.
        orientation: How to turn the picture, Exif's numbers; 1 is as it is.
        height_at: Where the height stands in the file, two bytes.
        in_order: Whether all of a row comes before the next row, unlike in
            progressive files.
        subsampled: Whether colours have fewer rows than the brightness.
    """

    height: int
    width: int
    orientation: int
    height_at: int
    in_order: bool
    subsampled: bool


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
    )


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


@dataclass
class JpegPicture:
    """A JPEG of which parts can be decoded.

    The picture is decoded at a half, a quarter or an eighth of its size where
    the crop still has the pixels that are wanted, and, with simplejpeg, down
    to the crop's last row.
    """

    content: bytes
    header: JpegHeader

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, turned as it should be."""
        height, width = self.header[:2]
        if self.header.orientation > 4:
            return width, height
        return height, width

    def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """Decode a part of the picture that will be resized.

        Args:
            box: The part, in pixels of the whole picture.
            size: Height and width that it will be resized to.

        Returns:
            np.ndarray: (h, w, 3), BGR, uint8; h and w are the box's or a
            fraction of it that is not below ``size``.

        Raises:
            DecodeError: If the file is damaged.
        """
        top, left, height, width = box
        scale = max(
            s
            for s in _SCALES
            if s == 1 or (height >= s * size[0] and width >= s * size[1])
        )
        if simplejpeg and self.header.orientation == 1:
            image = self._decode_down_to(top + height, scale)
        else:
            image = _decode_all(self.content, _SCALES[scale])
        top, left, bottom, right = (
            (2 * edge + scale) // (2 * scale)  # rounded, halves up
            for edge in (top, left, top + height, left + width)
        )
        crop = image[top:bottom, left:right]
        if crop.shape != (bottom - top, right - left, 3):
            raise DecodeError('it has another size than its header says')
        return crop

    def _decode_down_to(self, bottom: int, scale: int) -> np.ndarray:
        """Decode the rows above ``bottom``, or all, at 1 / ``scale``.

        The decoder is told that the picture ends there. Colours that have
        fewer rows are interpolated between rows, and need the next one too.
        """
        header, content = self.header, self.content
        rows = header.height
        bottom += 2 * header.subsampled
        if bottom < rows and header.in_order:
            rows = bottom
            content = bytearray(content)
            at = header.height_at
            content[at : at + 2] = rows.to_bytes(2, 'big')
        try:
            return simplejpeg.decode_jpeg(
                content,
                'BGR',
                min_height=-(-rows // scale),
                min_width=-(-header.width // scale),
                min_factor=scale,
                strict=False,  # of what follows the last row it would complain
            )
        except ValueError as error:
            raise DecodeError(str(error)) from error


@dataclass
class WholePicture:
    """A picture that has been decoded.

    Attributes:
        image: (height, width, 3), uint8.
        rgb: Whether it is RGB, not BGR.
    """

    image: np.ndarray
    rgb: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape[:2]

    def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """Take a part of it; see ``JpegPicture.crop``."""
        top, left, height, width = box
        part = self.image[top : top + height, left : left + width]
        return cv2.cvtColor(part, cv2.COLOR_RGB2BGR) if self.rgb else part


def open_picture(content: bytes) -> JpegPicture | WholePicture:
    """Look at a picture, and decode it if it has to be decoded as a whole.

    Args:
        content: The file: a JPEG, a PPM, or whatever OpenCV reads.

    Raises:
        DecodeError: If it is cut off, damaged, or of no known format.
    """
    header = read_jpeg_header(content)
    if header is not None:
        return JpegPicture(content, header)
    ppm = _PPM.match(content)
    if ppm:
        width, height = int(ppm[1]), int(ppm[2])
        if len(content) - ppm.end() < 3 * height * width:
            raise DecodeError('it is cut off')
        image = np.frombuffer(content, np.uint8, 3 * height * width, ppm.end())
        return WholePicture(image.reshape(height, width, 3), rgb=True)
    return WholePicture(_decode_all(content, cv2.IMREAD_COLOR))


def _decode_all(content: bytes, flag: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:  # empty, or too large
        image = None
    if image is None:
        raise DecodeError('it cannot be decoded')
    return image


def decode_jpeg(content: bytes) -> np.ndarray | None:
    """Decode a whole JPEG.

    Returns:
        np.ndarray | None: (height, width, 3), BGR, uint8; None if it is no
        JPEG.

    Raises:
        DecodeError: If it is cut off or damaged.
    """
    if content[:2] != b'\xff\xd8':
        return None
    picture = open_picture(content)
    return picture.crop((0, 0, *picture.shape), picture.shape)


def encode_ppm(image: np.ndarray) -> bytes:
    """Write a decoded picture so that nothing has to be decoded any more.

    Args:
        image: (height, width, 3), BGR, uint8.
    """
    height, width = image.shape[:2]
    pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return b'P6\n%d %d\n255\n%s' % (width, height, pixels.tobytes())
