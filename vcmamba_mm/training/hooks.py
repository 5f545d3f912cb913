"""Hooks for runs that are interrupted, go on, and end the same."""

import hashlib
import math
import os
import pickle
import random
from collections import deque
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import (
    all_reduce_params,
    broadcast,
    get_rank,
    is_main_process,
    master_only,
)
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ..checkpoints import extract_state_dict, read_checkpoint, write_checkpoint
from ..files import remove_leftovers, write_file
from .errors import SettingError


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` that never has less than it shall keep.

    Files are whole or not there, and older ones, the best one included, are
    removed after the new one is written. A run that is resumed where it would
    have validated validates there: it may have been killed before. Every
    process validates with the running statistics that are saved.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._best_before = {}
        if type(self.file_backend) is LocalBackend:
            if self.backend_args is None:
                self.backend_args = dict(backend='atomic')
            if is_main_process():
                remove_leftovers(self.out_dir)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)  # without maxlen
        if self._validation_is_due(runner):
            runner.val_loop.run()

    def before_val_epoch(self, runner: Runner) -> None:
        # Without SyncBN each process has its own; the first one's are saved.
        for buffer in runner.model.buffers():
            broadcast(buffer)

    @staticmethod
    def _validation_is_due(runner: Runner) -> bool:
        loop = runner.train_loop
        if not (runner._resume and runner.val_loop is not None):
            return False
        if isinstance(loop, IterBasedTrainLoop):
            step, last = loop.iter, loop.max_iters
        else:
            step, last = loop.epoch, loop.max_epochs
            if loop.iter != step * len(loop.dataloader):
                return False  # in the middle of an epoch
        return step >= loop.val_begin and (
            step % loop.val_interval == 0 or step == last
        )

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        self._forget_worse()
        limited = self.max_keep_ckpts > 0
        if limited and step not in list(self.keep_ckpt_ids)[-1:]:
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info(
                'keep_ckpt_ids', list(self.keep_ckpt_ids)
            )
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_file(
                self.last_ckpt.encode(),
                Path(runner.work_dir) / 'last_checkpoint',
            )
        # If it is killed here, MMEngine removes them when it is resumed.
        while limited and len(self.keep_ckpt_ids) > self.max_keep_ckpts:
            self._remove(self._path(self.keep_ckpt_ids.popleft()))

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        """As MMEngine's, which of two sets of weights keeps the average."""
        checkpoint = read_checkpoint(ckpt_path)
        if 'ema_state_dict' not in self.published_keys:
            checkpoint['state_dict'] = extract_state_dict(
                checkpoint, ckpt_path
            )
        published = {
            key: value
            for key, value in checkpoint.items()
            if key in self.published_keys
        }
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()
        stem, _ = os.path.splitext(ckpt_path)
        path = f'{stem}-{digest[:8]}.pth'
        write_checkpoint(published, path)
        runner.logger.info(f'{ckpt_path} is published to {path}')

    def _path(self, step: int) -> str:
        name = self.filename_tmpl.format(step)
        return self.file_backend.join_path(self.out_dir, name)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        unknown = {*self.key_indicators} - {'auto', *metrics}
        if unknown:
            raise SettingError(
                f'default_hooks.checkpoint.save_best: {", ".join(unknown)} is '
                f'not measured, only {", ".join(metrics)}'
            )
        # MMEngine's method removes the best before it has written a better
        # one, unless it does not know of it.
        self._best_before = self._best
        self._best = dict.fromkeys(self._best_before)
        super()._save_best_checkpoint(runner, metrics)
        self._forget_worse()

    @property
    def _best(self) -> dict[str, str | None]:
        """Path of the best checkpoint by each metric."""
        if len(self.key_indicators) > 1:
            return self.best_ckpt_path_dict
        return {'': self.best_ckpt_path}

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) > 1:
            self.best_ckpt_path_dict = paths
        else:
            self.best_ckpt_path = paths['']

    def _forget_worse(self) -> None:
        """Remove the best ones of before that there is a better one for."""
        if not self._best_before:
            return
        before, self._best_before = self._best_before, {}
        self._best = {k: path or before[k] for k, path in self._best.items()}
        for path in {*before.values()} - {*self._best.values(), None}:
            self._remove(path)

    @master_only
    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # checkpoints of some strategies are folders
            self.file_backend.rmtree(path)


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Seed Python, NumPy and PyTorch before every training step.

    The seed is made of the run's seed, the process, and the iteration. So what
    is random in a step (Mixup, stochastic depth, dropout) differs between
    processes and iterations, and is the same in a run that was resumed,
    wherever that was. Samplers and transforms have seeds of their own.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        sequence = np.random.SeedSequence(
            [runner.seed, get_rank(), runner.iter]
        )
        words = sequence.generate_state(4)
        random.seed(words.tobytes())
        np.random.seed(words)
        torch.manual_seed(int(words[:2].view(np.uint64)[0]))


@HOOKS.register_module()
class AverageBuffersHook(Hook):
    """Average running statistics over the processes after every epoch.

    Those of the weights' averages, which an ``EMAHook`` keeps, too.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        averages = (h for h in runner.hooks if isinstance(h, EMAHook))
        models = [runner.model, *(hook.ema_model for hook in averages)]
        all_reduce_params(
            [b for m in models for b in m.buffers() if b.is_floating_point()],
            op='mean',
        )


class NonFiniteError(ArithmeticError):
    """Loss, gradients or weights are NaN or infinite."""


def _logged(runner: Runner, key: str) -> float:
    """What was logged last."""
    return runner.message_hub.get_scalar(f'train/{key}').current()


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Look for NaN and infinity before weights change or are saved.

    The norm of all gradients shows them; it is logged as ``grad_norm``, which
    MMEngine does with ``clip_grad`` only. Every process looks, after gradients
    were averaged: all come to the same decision, whosever batch it was.
    With ``clip_grad`` of type 'value' infinite ones are clipped before that,
    only NaN is left.

    Args:
        action: 'stop' ends the run; 'skip' leaves weights, state of the
            optimizer and running statistics as they were, and goes on.
        max_skips: How many iterations in a row 'skip' may skip.

    Raises:
        NonFiniteError: When the run has to end.
    """

    priority = 'VERY_HIGH'

    def __init__(self, action: str = 'stop', max_skips: int = 10) -> None:
        if action not in ('stop', 'skip'):
            raise ValueError(
                f"action must be 'stop' or 'skip', got {action!r}"
            )
        self.max_skips = max_skips if action == 'skip' else 0
        self.skips = 0  # in a row

    def before_train(self, runner: Runner) -> None:
        self._buffers = None

        def before_step(optimizer, args, kwargs):
            if math.isfinite(self._log_norm(runner, optimizer)):
                self._buffers = None
                return
            self._skip_or_stop(runner, 'gradients are')
            # Optimizers leave parameters without a gradient alone.
            optimizer.zero_grad(set_to_none=True)

        runner.optim_wrapper.optimizer.register_step_pre_hook(before_step)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._skips_before = self.skips
        # Once for all the iterations whose gradients are summed up.
        if self.max_skips and self._buffers is None:
            self._buffers = [b.clone() for b in runner.model.buffers()]

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        if self.skips > self._skips_before:
            return
        # A gradient scaler (fp16) drops steps by itself, the optimizer does
        # not hear of them. That is normal as long as the loss is finite, which
        # MMEngine has just brought from the GPU.
        if not math.isfinite(_logged(runner, 'loss')):
            self._skip_or_stop(runner, 'the loss is')
        else:
            self.skips = 0

    @staticmethod
    def _log_norm(runner: Runner, optimizer: Optimizer) -> float:
        """Wait for the gradients, once a step, and return their norm."""
        wrapper = runner.optim_wrapper
        if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
            return _logged(runner, 'grad_norm')  # of before it clipped
        params = [
            p for group in optimizer.param_groups for p in group['params']
        ]
        # Clipping at infinity changes nothing.
        norm = clip_grad_norm_(params, math.inf).item()
        if math.isfinite(norm):
            runner.message_hub.update_scalar('train/grad_norm', norm)
        return norm

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for name, value in checkpoint['state_dict'].items():
            if value.is_floating_point() and not value.isfinite().all():
                raise NonFiniteError(
                    f'{name} is NaN or infinite at iteration {runner.iter + 1}'
                    ': not saved, earlier checkpoints are as they were'
                )

    def _skip_or_stop(self, runner: Runner, what: str) -> None:
        self.skips += 1
        where = f'{what} NaN or infinite at iteration {runner.iter + 1}'
        if self.skips > self.max_skips:
            raise NonFiniteError(
                f'{where} ({self.skips} in a row): the weights are as before, '
                'nothing was saved. A resumed run would come there again: '
                'look at the data and the learning rate, or leave out such '
                'iterations with --resume --cfg-options '
                'default_hooks.check_finite.action=skip'
            )
        for buffer, value in zip(runner.model.buffers(), self._buffers):
            buffer.copy_(value)
        runner.logger.warning(
            f'{where}: skipped, {self.skips} in a row, {self.max_skips} may be'
        )
