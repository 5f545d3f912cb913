"""mmseg's inferencer, for images as they are tested."""

from collections.abc import Callable

import numpy as np
from mmengine.config import Config
from mmseg.apis import MMSegInferencer
from mmseg.structures import SegDataSample

from ..data.pictures import build_reading, build_test_pipeline, viewable


class SegmentationInferencer(MMSegInferencer):
    """mmseg's, which reads images as the config's test does.

    Arrays are taken as they are. Paintings are numbered, as masks are.

    Raises:
        ImageReadError: If an image is missing or cannot be decoded.
    """

    def _init_pipeline(self, cfg: Config) -> Callable:
        self._read = build_reading(cfg)
        return build_test_pipeline(cfg)

    def visualize(
        self,
        inputs: list[str | np.ndarray],
        preds: list[SegDataSample],
        return_vis: bool = False,
        show: bool = False,
        wait_time: int = 0,
        img_out_dir: str = '',
        **kwargs,
    ) -> list[np.ndarray] | None:
        if return_vis or show or img_out_dir:
            inputs = [
                x
                if isinstance(x, np.ndarray)
                else viewable(self._read(dict(img_path=x))['img'])
                for x in inputs
            ]
        return super().visualize(
            inputs, preds, return_vis, show, wait_time, img_out_dir, **kwargs
        )
