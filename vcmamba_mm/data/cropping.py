"""Decoding of a crop, no more of the image than it needs."""

import re
from dataclasses import dataclass

import cv2
import numpy as np

from .decoding import (
    DecodeError,
    JpegHeader,
    check_size,
    decode_image,
    decode_or_none,
    read_header,
    read_jpeg_header,
)

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
_PPM = re.compile(rb'P6\n([1-9]\d*) ([1-9]\d*)\n255\n')


def _decode_all(content: bytes, flag: int) -> np.ndarray:
    image = decode_or_none(content, flag)
    if image is None:
        raise DecodeError('it cannot be decoded')
    return image


@dataclass
class JpegPicture:
    """A JPEG of which parts can be decoded.

    The image is decoded at a half, a quarter or an eighth of its size where
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
        """Decode a part of the image that will be resized.

        Args:
            box: The part, in pixels of the whole image.
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

        The decoder is told that the image ends there. Colours that have
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
    """An image that has been decoded.

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
    """Look at an image, and decode it if it has to be decoded as a whole.

    Args:
        content: The file: a JPEG, a PPM, or whatever OpenCV reads.

    Raises:
        DecodeError: If it is cut off, damaged, or of no known format.
    """
    header = read_jpeg_header(content)
    if header is not None:
        check_size('JPEG', header.height, header.width, len(content))
        return JpegPicture(content, header)
    ppm = _PPM.match(content)
    if ppm:
        width, height = int(ppm[1]), int(ppm[2])
        if len(content) - ppm.end() < 3 * height * width:
            raise DecodeError('it is cut off')
        image = np.frombuffer(content, np.uint8, 3 * height * width, ppm.end())
        return WholePicture(image.reshape(height, width, 3), rgb=True)
    return WholePicture(decode_image(content)[0])


def decode_jpeg(content: bytes) -> np.ndarray | None:
    """Decode a whole JPEG.

    Returns:
        np.ndarray | None: (height, width, 3), BGR, uint8; None if it is no
        JPEG, or has an Exif orientation, which would be lost.

    Raises:
        DecodeError: If it is cut off or damaged.
    """
    if content[:2] != b'\xff\xd8' or read_header(content).orientation != 1:
        return None
    picture = open_picture(content)
    return picture.crop((0, 0, *picture.shape), picture.shape)


def encode_ppm(image: np.ndarray) -> bytes:
    """Write a decoded image so that nothing has to be decoded any more.

    Args:
        image: (height, width, 3), BGR, uint8.
    """
    height, width = image.shape[:2]
    pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return b'P6\n%d %d\n255\n%s' % (width, height, pixels.tobytes())
