"""mmpretrain's inferencer, for images as they are tested."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
from mmpretrain.apis import BaseInferencer
from mmpretrain.models.heads import MultiLabelClsHead
from mmpretrain.structures import DataSample

from ..data.pictures import build_test_pipeline


class ClassificationInferencer(ImageClassificationInferencer):
    """mmpretrain's, which reads images as the config's test does.

    Arrays are taken as they are. What a classifier with several labels to a
    image returns as ``pred_label``, ``pred_score`` and ``pred_class`` are
    lists of those that it predicts, the most certain first: none, if all
    scores are below the threshold of its head.

    Raises:
        ImageReadError: If an image is missing or cannot be decoded.
        FileExistsError: If two images would be painted to the same place.
    """

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return isinstance(self.model.head, MultiLabelClsHead)

    def _init_pipeline(self, cfg: Config) -> Callable:
        return build_test_pipeline(cfg)

    preprocess = BaseInferencer.preprocess  # which leaves reading to it

    def visualize(
        self,
        ori_inputs: list[str | np.ndarray],
        preds: list[DataSample],
        *args,
        show_dir: str | Path | None = None,
        **kwargs,
    ) -> list[np.ndarray] | None:
        # as mmpretrain makes them: photo.png of photo.1.jpg
        stems = (
            Path(x).stem if isinstance(x, str) else str(i)
            for i, x in enumerate(ori_inputs)
        )
        names = Counter(Path(stem).with_suffix('.png').name for stem in stems)
        twice = [name for name, count in names.items() if count > 1]
        if show_dir is not None and twice:
            raise FileExistsError(
                f'several images would be painted to {show_dir}/{twice[0]}'
                ': give each call images with different names'
            )
        return super().visualize(
            ori_inputs, preds, *args, show_dir=show_dir, **kwargs
        )

    def postprocess(
        self,
        preds: list[DataSample],
        visualization: list[np.ndarray] | None,
        return_datasamples: bool = False,
    ) -> list[dict] | list[DataSample]:
        results = super().postprocess(preds, visualization, return_datasamples)
        if return_datasamples or not self.multi_label:
            return results
        for result, sample in zip(results, preds):
            scores, labels = predicted_classes(sample)
            result.update(pred_score=scores, pred_label=labels)
            if self.classes is not None:
                result['pred_class'] = [self.classes[i] for i in labels]
        return results


def predicted_classes(sample: DataSample) -> tuple[list[float], list[int]]:
    """Scores and numbers of what is predicted, the most certain first."""
    scores, order = sample.pred_score[sample.pred_label].sort(descending=True)
    return scores.tolist(), sample.pred_label[order].tolist()
