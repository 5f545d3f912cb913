"""Reading images, and going on without one that cannot be read."""

import logging

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose, LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from .decoding import DecodeError, KindError, check_options, decode_image

AS_STORED = (
    "color_type='color_ignore_orientation' in what loads images, training's "
    "and testing's"
)


class ImageReadError(OSError):
    """An image or a mask that is missing or cannot be decoded."""


class AnnotationError(ValueError):
    """What is annotated does not fit its image."""


def unreadable(
    path: str, error: Exception, what: str = 'image'
) -> ImageReadError:
    """The error about a file, given what reading or decoding it raised."""
    if isinstance(error, KindError):
        return ImageReadError(f'{what} {path} {error}')
    cause = ' '.join(f'{type(error).__name__}: {error}'.split())
    return ImageReadError(
        f'{what} {path} cannot be read (missing or corrupt): replace it or '
        f'take it out of the data set ({cause})'
    )


@TRANSFORMS.register_module()
class LoadImageStrict(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` with one clear error.

    How the image was turned, ``turned_by``, is noted for
    ``LoadMaskStrict``.

    Raises:
        ImageReadError: If the image is missing, cannot be decoded, or is of
            a kind that is not read; it names the file.
        AnnotationError: If a detector's annotation has the height and width
            of an image that is turned here, as it is stored.
    """

    _told = False  # of pictures that are nearly black

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_options(self.color_type, self.imdecode_backend)

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        try:
            content = self._get(path)
            image, turned = decode_image(
                content, self.color_type, self.imdecode_backend
            )
        except (OSError, DecodeError) as error:
            if self.ignore_empty:
                return None
            raise unreadable(path, error) from error
        self._look_for_few_bits(image, content, path)
        annotated = results.get('width'), results.get('height')
        if turned > 4 and annotated == image.shape[:2] != annotated[::-1]:
            raise AnnotationError(
                f'image {path} is turned by its Exif orientation {turned}, '
                'its annotation has the size as it is stored: set '
                f'{AS_STORED}'
            )
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        results['turned_by'] = turned
        return results

    def _look_for_few_bits(
        self, image: np.ndarray, content: bytes, path: str
    ) -> None:
        """Say once if 12 of 16 bits are used, of which 8 are taken."""
        if self._told or image.dtype != np.uint8 or image.max() >= 16:
            return
        if self.imdecode_backend not in (None, 'cv2', 'pillow'):
            return
        try:
            stored, _ = decode_image(
                content, 'unchanged', self.imdecode_backend
            )
        except DecodeError:
            return
        if stored.dtype == np.uint16:
            LoadImageStrict._told = True
            print_log(
                f'image {path} is nearly black, since only its upper 8 bits '
                f'of 16 are taken, and its largest value is {stored.max()}: '
                'multiply the values',
                'current',
                logging.WARNING,
            )

    def _get(self, path: str) -> bytes:
        if self.file_client_args is None:
            return fileio.get(path, backend_args=self.backend_args)
        client = fileio.FileClient.infer_client(self.file_client_args, path)
        return client.get(path)


@TRANSFORMS.register_module()
class ReplaceUnreadable(BaseTransform):
    """Let training go on when an image, or its mask, cannot be read.

    Another sample, taken at random, stands in for it (MMEngine's data sets
    do that when a transform returns None). Each is logged by name, and all
    are counted, over all the workers of this process.

    Args:
        transform: Config of the transform that reads, or of several.
        max_rate: Part of the images that may be unreadable. Of the first
            ``GRACE`` images as many may be as of ``GRACE``.

    Raises:
        ImageReadError: If there are more.
    """

    GRACE = 1000
    _MAX_WORKERS = 1024

    def __init__(
        self, transform: dict | list[dict], max_rate: float = 0.01
    ) -> None:
        if not 0 <= max_rate < 1:
            raise ValueError(f'max_rate must be in [0, 1), got {max_rate}')
        self.reading = Compose(transform)
        self.max_rate = max_rate
        # Pictures read, and failed, by worker: none writes another's row.
        self._counts = torch.zeros(
            self._MAX_WORKERS, 2, dtype=torch.int64
        ).share_memory_()

    @property
    def counts(self) -> tuple[int, int]:
        """How many images were read, and how many of them failed."""
        return tuple(self._counts.sum(0).tolist())

    def transform(self, results: dict) -> dict | None:
        worker = get_worker_info()
        own = self._counts.numpy()[worker.id if worker else 0]
        own[0] += 1
        try:
            return self.reading(results)
        except ImageReadError as error:
            own[1] += 1
            read, failed = self.counts
            so_far = f'{failed} of {read} images so far'
            if failed > self.max_rate * max(read, self.GRACE):
                raise ImageReadError(
                    f'{error}. {so_far} could not be read, more than '
                    f'max_rate={self.max_rate:g} allows'
                ) from error
            # As an error, since other levels show in the first process only.
            print_log(
                f'{error}. Another takes its place ({so_far})',
                'current',
                logging.ERROR,
            )
            return None
