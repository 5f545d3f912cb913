"""Masks that do not fit the model are named before they do harm."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn


class MaskError(ValueError):
    """A mask whose values are not those of the classes."""


@HOOKS.register_module()
class CheckMasksHook(Hook):
    """Compare the values of each mask with the classes of a segmenter.

    A wrong one would end in an error of the loss that names no file. If the
    first ``GRACE`` masks have no class but 0, one line says so: many masks are
    0 and 255, and 255 is not trained.

    Raises:
        MaskError: If a mask is not a map of numbers below ``num_classes`` and
            ``ignore_index``; it names the file.
    """

    GRACE = 32

    def __init__(self) -> None:
        self._empty = 0  # masks so far, None from the first with a class

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        head = model.decode_head
        if isinstance(head, nn.ModuleList):  # a cascade
            head = head[-1]
        for sample in data_batch['data_samples']:
            labels = sample.gt_sem_seg.data
            path = sample.get('seg_map_path')
            if labels.dim() != 3 or len(labels) != 1:
                raise MaskError(
                    f'mask {path} is a picture in colours: save it with one '
                    'channel, the number of the class in each pixel'
                )
            wrong = (labels >= head.num_classes) | (labels < 0)
            wrong &= labels != head.ignore_index
            if wrong.any():
                values = labels[wrong].unique().tolist()
                raise MaskError(
                    f'mask {path} holds {", ".join(map(str, values[:8]))}, '
                    f'the classes are 0 to {head.num_classes - 1}, and '
                    f'{head.ignore_index} is ignored: mend the mask, or set '
                    'num_classes or ignore_index in the config'
                )
            self._look_for_a_class(labels, head.ignore_index)

    def _look_for_a_class(self, labels: Tensor, ignore_index: int) -> None:
        if self._empty is None:
            return
        self._empty += 1
        if ((labels > 0) & (labels != ignore_index)).any():
            self._empty = None
        elif self._empty == self.GRACE:
            print_log(
                f'The first {self.GRACE} masks hold nothing but 0 and '
                f'{ignore_index}, which is not trained: are objects '
                f'{ignore_index} in them? Then make them 1',
                'current',
                logging.WARNING,
            )
