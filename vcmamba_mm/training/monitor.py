"""Hooks that show how a training runs, on screen and in all backends."""

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook, RuntimeInfoHook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner

from ..analysis.complexity import count_macs
from ..checkpoints import extract_state_dict
from ..checkpoints.loading import WEIGHT_ENTRIES


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Log images per second, and how much of the hardware they use.

    ``images_per_second`` counts the images of all processes in the ``time``
    of the same line of the log, waiting for data included. ``tflops`` is what
    model and images need on each device, in TFLOP/s: a forward pass, and
    twice as much for the backward pass, two operations for each
    multiply-accumulate. What recomputation, frozen stages or a teacher add or
    save is not looked at, as is usual. ``mfu``, the model FLOP utilisation, is
    ``tflops`` in percent of ``peak_tflops``. What is counted is the model of
    the runner's config; without a config there are only images per second.

    Args:
        peak_tflops: What one device can do at most with the numbers it
            computes with, in TFLOP/s; see its data sheet. Without it there
            is no ``mfu``.

    Raises:
        ValueError: If ``peak_tflops`` is not positive.
    """

    # As the hook that takes the time, which MMEngine registers before it.
    priority = 'NORMAL'

    def __init__(self, peak_tflops: float | None = None):
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(
                f'peak_tflops must be positive, got {peak_tflops}'
            )
        self.peak_tflops = peak_tflops
        self.flops = None  # of an image's training step

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        if self.flops is not None or not runner.cfg.get('model'):
            return
        # A copy from the config: what trains may be compiled or sharded.
        with torch.random.fork_rng(devices=[]):
            model = MODELS.build(runner.cfg.model).eval()
        channels, *size = data_batch['inputs'][0].shape
        # A segmenter's preprocessor pads to its size.
        size = getattr(model.data_preprocessor, 'size', None) or size
        macs = count_macs(model.to('meta'), (channels, *size))
        self.flops = 2 * 3 * macs

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        hub = runner.message_hub
        window = runner.log_processor.window_size
        seconds = hub.get_scalar('train/time').mean(window)
        per_device = len(data_batch['inputs']) / seconds
        hub.update_scalar(
            'train/images_per_second', per_device * get_world_size()
        )
        if self.flops is None:
            return
        tflops = self.flops * per_device / 1e12
        hub.update_scalar('train/tflops', tflops)
        if self.peak_tflops:
            hub.update_scalar('train/mfu', 100 * tflops / self.peak_tflops)


@HOOKS.register_module()
class RawAndEMAHook(EMAHook):
    """Keep an average of the weights beside them, and validate both.

    A metric of the weights has its own name, the average's has ``_ema`` at its
    end; ``save_best`` may name either. Validation takes twice the time. What
    is tested is the weights. Arguments and checkpoints are those of MMEngine's
    ``EMAHook``; ``meta['weights']`` says which set is the ranked one: 'ema' in
    a best checkpoint by a metric of the average, and in all of a run that has
    no other; else 'raw'.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._best = set()

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._best = self._best_checkpoints(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """The weights come first."""

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        loop = runner.val_loop
        self._swap_ema_parameters()
        for i, batch in enumerate(loop.dataloader):
            loop.run_iter(i, batch)
        averages = {
            f'{name}_ema': value
            for name, value in loop.evaluator.evaluate(
                len(loop.dataloader.dataset)
            ).items()
        }
        self._swap_ema_parameters()
        if metrics is not None:
            metrics.update(averages)
        # It has recorded those of the weights before.
        RuntimeInfoHook().after_val_epoch(runner, averages)

    def before_test_epoch(self, runner: Runner) -> None:
        """Nothing is swapped."""

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Nothing was swapped."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().before_save_checkpoint(runner, checkpoint)
        # MMEngine notes the name of a best checkpoint just before it saves it.
        before, self._best = self._best, self._best_checkpoints(runner)
        ranking = {metric for metric, _ in self._best - before or self._best}
        by_average = all(metric.endswith('_ema') for metric in ranking)
        checkpoint['meta']['weights'] = (
            'ema' if ranking and by_average else 'raw'
        )

    @staticmethod
    def _best_checkpoints(runner: Runner) -> set[tuple[str, str | None]]:
        """Metrics, and the best checkpoint by each of them so far."""
        noted = runner.message_hub.runtime_info
        best = set()
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.save_best:
                metrics = hook.key_indicators
                for metric in metrics:
                    several = len(metrics) > 1
                    name = f'best_ckpt_{metric}' if several else 'best_ckpt'
                    best.add((metric, noted.get(name)))
        return best

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            # MMEngine's runner would take the average.
            checkpoint['state_dict'] = extract_state_dict(
                checkpoint, runner._load_from or 'the checkpoint'
            )
            for entry in WEIGHT_ENTRIES - {'state_dict'}:
                checkpoint.pop(entry, None)
        super().after_load_checkpoint(runner, checkpoint)
