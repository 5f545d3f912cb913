"""Reading pictures."""

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS


class ImageReadError(OSError):
    """A picture that is missing or cannot be decoded."""


@TRANSFORMS.register_module()
class LoadImageStrict(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` with one clear error.

    Raises:
        ImageReadError: If the picture is missing or cannot be decoded; it
            names the file.
    """

    def transform(self, results: dict) -> dict | None:
        try:
            return super().transform(results)
        # mmcv asserts, cv2 and the file client have errors of their own.
        except (AssertionError, AttributeError, cv2.error, OSError) as error:
            raise ImageReadError(
                f'picture {results["img_path"]} cannot be read (missing or '
                'corrupt): replace it or take it out of the data set'
            ) from error
