"""A loop over epochs that can start in the middle of one."""

from collections.abc import Iterator
from itertools import islice

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Sampler


class ResumeError(ValueError):
    """A run that cannot go on as it was begun."""


class _Rest(Sampler):
    """What a sampler has left after the first ``start`` samples."""

    def __init__(self, sampler: Sampler, start: int) -> None:
        self.sampler = sampler
        self.start = start

    def __iter__(self):
        return islice(iter(self.sampler), self.start, None)

    def __len__(self) -> int:
        return len(self.sampler)


def _epoch_length(runner: Runner) -> int | None:
    """Iterations of an epoch when the checkpoint was written, if it says so.

    It is known until the hooks write what is now.
    """
    info = runner.message_hub.runtime_info
    if 'max_iters' in info:
        return info['max_iters'] // info['max_epochs']
    return None


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop`` that resumes at every iteration.

    With ``default_hooks.checkpoint=dict(by_epoch=False, interval=1000)``
    checkpoints come every 1000 iterations. A run resumed from one goes on with
    the next batch of the epoch; those before are not read again.

    Raises:
        ResumeError: If an epoch has another number of iterations than when
            the checkpoint was written in the middle of one.
    """

    def run(self) -> nn.Module:
        before = _epoch_length(self.runner)
        if self._iter and before:
            self._compare_epochs(before)
        return super().run()

    def _compare_epochs(self, before: int) -> None:
        now = len(self.dataloader)
        if before == now:
            return
        lengths = (
            f'an epoch had {before} iterations when the checkpoint was '
            f'written and has {now} now (another number of processes or '
            'images, or another batch size)'
        )
        if self._iter % before:
            raise ResumeError(
                f'{lengths}, and it was written in the middle of one: resume '
                'with what was, or from a checkpoint at the end of an epoch'
            )
        self.runner.logger.warning(
            f'{lengths}: the run goes on with the next epoch, but not as it '
            'would have; the learning rate keeps to the iterations of before'
        )
        self._epoch = self._iter // before
        self._iter = self._epoch * now

    def run_epoch(self) -> None:
        """Iterate over what is left of one epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        seen = self._iter - self._epoch * len(self.dataloader)
        for idx, data_batch in enumerate(self._batches(seen), seen):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _batches(self, seen: int) -> Iterator[dict]:
        if not seen:
            yield from self.dataloader
            return
        batch_sampler = self.dataloader.batch_sampler
        sampler = batch_sampler.sampler
        batch_sampler.sampler = _Rest(sampler, seen * batch_sampler.batch_size)
        try:
            yield from self.dataloader
        finally:
            batch_sampler.sampler = sampler


def check_start(runner: Runner) -> None:
    """Look whether MMEngine's loop over epochs can go on where a run resumes.

    Raises:
        ResumeError: If that is within an epoch: the loop would repeat it from
            its start, while iterations and learning rates go on.
    """
    loop = runner.train_loop
    if isinstance(loop, ResumableEpochLoop) or not isinstance(
        loop, EpochBasedTrainLoop
    ):
        return
    length = _epoch_length(runner) or len(loop.dataloader)
    if loop.iter != loop.epoch * length:
        raise ResumeError(
            f'the checkpoint was written within an epoch, after iteration '
            f'{loop.iter}, and {type(loop).__name__} can only begin with a '
            'whole one: resume from a checkpoint of the end of an epoch '
            '(default_hooks.checkpoint.by_epoch=True writes those)'
        )
