"""Naming masks that do not fit the classes of a segmenter."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..data.masks import IN_COLOURS, MaskError, wrong_values
from .classes import unwrapped


def _head(model: nn.Module) -> nn.Module | None:
    """The head that tells the classes of a segmenter, if it has one."""
    head = getattr(unwrapped(model), 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head  # a cascade


@HOOKS.register_module()
class CheckMasksHook(Hook):
    """Compare the values of each mask with the classes of a segmenter.

    In training a wrong one would end in an error of the loss that names no
    file, in validation and testing in wrong figures. If the first ``GRACE``
    masks of a loop have no class but 0, one line says so: many masks are 0
    and 255, and 255 is not counted.

    Raises:
        MaskError: If a mask is not a map of numbers below ``num_classes`` and
            ``ignore_index``; it names the file.
    """

    GRACE = 32

    def __init__(self) -> None:
        # Masks so far by loop, None from the first with a class
        self._empty = dict.fromkeys(('train', 'val', 'test'), 0)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check('train', runner, data_batch)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check('val', runner, data_batch)

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check('test', runner, data_batch)

    def _check(self, loop: str, runner: Runner, batch: dict) -> None:
        head = _head(runner.model)
        samples = batch.get('data_samples')
        if head is None or not samples:
            return
        if isinstance(samples[0], (list, tuple)):  # of each augmentation
            samples = samples[0]
        ignored = []
        if loop != 'train':  # a metric may ignore something else
            ignored = [
                metric.ignore_index
                for metric in getattr(runner, f'{loop}_loop').evaluator.metrics
                if hasattr(metric, 'ignore_index')
            ]
        for ignore_index in set(ignored or [head.ignore_index]):
            self._compare(loop, samples, head.num_classes, ignore_index)

    def _compare(
        self, loop: str, samples: list, num_classes: int, ignore_index: int
    ) -> None:
        if ignore_index == 255 < num_classes:
            raise MaskError(
                f'255 is a class of {num_classes}, and ignored: set another '
                'ignore_index in decode_head and evaluators, and another '
                'seg_pad_val in data_preprocessor'
            )
        for sample in samples:
            if 'gt_sem_seg' not in sample:  # a test without masks
                continue
            labels = sample.gt_sem_seg.data
            path = sample.get('seg_map_path')
            if labels.dim() != 3 or len(labels) != 1:
                raise MaskError(f'mask {path} {IN_COLOURS}')
            wrong = (labels >= num_classes) | (labels < 0)
            wrong &= labels != ignore_index
            if wrong.any():
                first, ignored = 0, f'{ignore_index} is'
                if sample.get('reduce_zero_label'):
                    first, ignored = 1, f'0 and {ignore_index} are'
                raise wrong_values(
                    path,
                    labels[wrong].cpu().numpy() + first,
                    f'{first} to {num_classes - 1 + first}, and {ignored} '
                    'ignored: mend the mask, or set num_classes or '
                    'ignore_index in the config',
                )
            self._look_for_a_class(loop, labels, ignore_index)

    def _look_for_a_class(
        self, loop: str, labels: Tensor, ignore_index: int
    ) -> None:
        if self._empty[loop] is None:
            return
        self._empty[loop] += 1
        if ((labels > 0) & (labels != ignore_index)).any():
            self._empty[loop] = None
        elif self._empty[loop] == self.GRACE:
            print_log(
                f'The first {self.GRACE} masks hold nothing but 0 and '
                f'{ignore_index}, which is not counted: are objects '
                f'{ignore_index} in them? Then make them 1',
                'current',
                logging.WARNING,
            )
