"""The runner: MMEngine's, for runs that are interrupted."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.registry import FUNCTIONS, OPTIMIZERS, Registry
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..checkpoints import (
    check_fit,
    check_resumable,
    extract_state_dict,
    find_resumable,
    read_checkpoint,
)
from ..checkpoints.loading import WEIGHT_ENTRIES
from ..data.folders import compare_folders, parts_of
from ..data.pictures import type_name
from .classes import check_classes, classes_of, compare_classes, unwrapped
from .config import (
    adapt_to_cpu,
    check_data,
    check_pretrained,
    check_switches,
    forget_workers,
    name_unreadable,
)
from .errors import SETUP_ERRORS, SettingError, message
from .loops import check_start
from .processes import deferred_signals, process_errors

_RESUME = '. Training goes on with --resume'


@contextmanager
def _setting(key: str) -> Iterator[None]:
    """Say which setting is wrong."""
    try:
        yield
    except SETUP_ERRORS as error:
        raise SettingError(f'{key}: {message(error)}') from error


def _check_type(
    registry: Registry, cfg: dict | None, scope: str | None = None
) -> None:
    """Look whether a registry has a type, where MMEngine does not.

    Without a scope it is that of the runner that was built last.

    Raises:
        KeyError: If not, with what MMEngine says of the others.
    """
    name = cfg.get('type') if isinstance(cfg, dict) else None
    if isinstance(name, str):
        with registry.switch_scope_and_registry(scope) as registry:
            if registry.get(name) is None:
                raise KeyError(
                    f'{name} is not in the {registry.scope}::{registry.name} '
                    'registry'
                )


class SafeRunner(Runner):
    """MMEngine's runner for runs that are interrupted.

    Checkpoints are written and read wholly or not, and no code in them runs.
    ``load_from`` and the checkpoint to test may be MMEngine's or the authors'
    released files; the key ``load_weights`` of the config says which of two
    sets of weights is taken, as in ``checkpoints.take_weights``. A resumed run
    has the seed of the interrupted one. The key ``resume_from`` of the config
    is a checkpoint, or ``'auto'`` for the latest good one in the work dir, if
    there is one. Under torchrun with restarts a checkpoint is where the run
    began: if the work dir has some that came of it, the latest of those is
    taken.
    """

    def set_randomness(self, seed: int | None = None, **kwargs) -> None:
        """Choose the checkpoint to resume, and seed.

        MMEngine reads the seed from the checkpoint too, but when samplers
        have been built with another one.

        Raises:
            CheckpointError: If the checkpoint holds no training, or there are
                some in the work dir and none is good.
        """
        wanted = self.cfg.get('resume_from')
        if self.cfg.get('resume'):  # how MMEngine's configs say it
            wanted = wanted or self.cfg.get('load_from') or 'auto'
        self._begun_with = None
        if wanted and wanted != 'auto':
            # The same file, in whichever way it is written.
            self._begun_with = (
                wanted if '://' in wanted else os.path.abspath(wanted)
            )
        # One process decides: a shared folder may look different to another.
        choice = [None]
        if wanted and is_main_process():
            choice = [self._choose_checkpoint(wanted)]
        broadcast_object_list(choice)
        self._resume_from, resumed_seed = choice[0] or (None, None)
        if resumed_seed is not None:
            if seed not in (None, resumed_seed):
                print_log(
                    f'The seed is {resumed_seed}, of the run that is '
                    f'resumed, not {seed}'
                )
            seed = resumed_seed
            self._randomness_cfg = dict(seed=seed, **kwargs)
        super().set_randomness(seed, **kwargs)

    # MMEngine builds these two when training begins.

    def build_optim_wrapper(
        self, optim_wrapper: Optimizer | OptimWrapper | dict
    ) -> OptimWrapper | OptimWrapperDict:
        """As MMEngine's.

        Raises:
            SettingError: If a setting is wrong.
        """
        with _setting('optim_wrapper'):
            if isinstance(optim_wrapper, dict):
                _check_type(OPTIMIZERS, optim_wrapper.get('optimizer'))
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(
        self, scheduler: _ParamScheduler | dict | list
    ) -> list[_ParamScheduler] | dict[str, list[_ParamScheduler]]:
        """As MMEngine's.

        Raises:
            SettingError: If a setting is wrong, for one if a part of the
                schedule would begin after the end of the run.
        """
        with _setting('param_scheduler'):
            return super().build_param_scheduler(scheduler)

    def _choose_checkpoint(self, path: str) -> tuple[str, int] | None:
        found = None
        if path == 'auto':
            found = find_resumable(self.work_dir)
            if found is None:
                print_log(f'Nothing to resume in {self.work_dir}: a new run')
                return None
        # How often torchrun has restarted does not tell: not how often after
        # the loss of a machine, and nothing on one that came back.
        elif int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)):
            found = find_resumable(self.work_dir, begun_with=self._begun_with)
        if found is None:
            checkpoint = read_checkpoint(path)
            check_resumable(checkpoint, path)
            found = path, checkpoint['meta']
        path, meta = found
        return path, meta.get('seed')

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, *args, **kwargs
    ) -> DataLoader:
        """As MMEngine's; workers may take ``timeout`` seconds for a batch.

        300 by default, less than the processes wait for each other. With
        ``num_workers=0`` the settings of workers mean nothing.
        """
        if isinstance(dataloader, dict):
            dataloader = {'timeout': 300, **dataloader}
            forget_workers(dataloader)
            _check_type(FUNCTIONS, dataloader.get('collate_fn'))
        return Runner.build_dataloader(dataloader, *args, **kwargs)

    def train(self) -> nn.Module:
        """As MMEngine's.

        Raises:
            ProcessError: If another process hangs or is gone.
        """
        with process_errors(_RESUME):
            return super().train()

    def val(self) -> dict:
        """As MMEngine's; raises as ``train``."""
        with process_errors():
            return super().val()

    def test(self) -> dict:
        """As MMEngine's; raises as ``train``."""
        with process_errors():
            return super().test()

    def load_or_resume(self) -> None:
        """Load what was chosen when the runner was built."""
        if self._resume_from is not None:
            self._resume, self._load_from = True, self._resume_from
        super().load_or_resume()

    def resume(self, *args, **kwargs) -> None:
        """As MMEngine's.

        Raises:
            ResumeError: If the loop cannot go on from there.
        """
        super().resume(*args, **kwargs)
        check_start(self)

    def _maybe_compile(self, target: str) -> None:
        """Compile the backbone, which is one graph.

        MMEngine would compile the whole training step, in many pieces.
        """
        options = self.cfg.get('compile')
        if options:
            backbone = unwrapped(self.model).backbone
            backbone.compile(**({} if options is True else options))

    def load_checkpoint(
        self,
        filename: str,
        map_location: str = 'cpu',
        strict: bool = True,
        revise_keys: list | None = None,
    ) -> dict:
        """Load weights; see ``mmengine.runner.Runner.load_checkpoint``.

        Raises:
            CheckpointError: If the file cannot be read or a key is missing,
                left over, or of another shape.
            SettingError: If the test data number the classes otherwise.
        """
        # To the CPU, whatever map_location: a GPU holds the model already.
        checkpoint = read_checkpoint(filename)
        model = unwrapped(self.model)
        ema_hooks = [hook for hook in self.hooks if isinstance(hook, EMAHook)]
        both = 'ema_state_dict' in checkpoint
        # A resumed run goes on with both sets, or without an average.
        if not (self._resume and both and ema_hooks):
            weights = self.cfg.get('load_weights')
            if self._resume:
                weights = 'raw' if both else None
            checkpoint['state_dict'] = extract_state_dict(
                checkpoint, filename, weights
            )
            for entry in WEIGHT_ENTRIES - {'state_dict'}:  # others may look
                checkpoint.pop(entry, None)
        trains = isinstance(self._train_loop, BaseLoop)
        check_fit(model, checkpoint['state_dict'], filename, load_from=trains)
        if isinstance(self._test_loop, BaseLoop):
            meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
            compare_classes(
                tuple(meta.get('classes') or ()),
                classes_of(self.test_loop.dataloader),
                'test',
            )
        # In a resumed run EMAHook puts the raw weights back under their name.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'])
        if not self._resume:
            # What is tested, and where averages begin, is what was loaded.
            for hook in ema_hooks:
                hook.ema_model.module.load_state_dict(
                    hook.src_model.state_dict()
                )
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        *args,
        meta: dict | None = None,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        """As MMEngine's; a local file is written wholly or not at all.

        Raises:
            WriteError: If it cannot be written.
        """
        if (
            file_client_args is None
            and backend_args is None
            and type(get_file_backend(out_dir)) is LocalBackend
        ):
            backend_args = dict(backend='atomic')
        meta = dict(meta or {}, begun_with=self._begun_with)
        # mmpretrain's EMAHook can be told to validate the weights instead.
        if not all(getattr(h, 'evaluate_on_ema', True) for h in self.hooks):
            meta['weights'] = 'raw'
        with deferred_signals():
            super().save_checkpoint(
                out_dir,
                filename,
                file_client_args,
                *args,
                meta=meta,
                backend_args=backend_args,
                **kwargs,
            )


class ShardedRunner(FlexibleRunner):
    """MMEngine's runner for strategies."""

    def train(self) -> nn.Module:
        """As MMEngine's; raises as ``SafeRunner.train``."""
        with process_errors(_RESUME):
            return super().train()


def _end_with_launcher() -> None:
    """Have Linux end this process when the tool that started it ends.

    torchrun's processes would go on when torchrun itself is killed, beside
    those of the next start.
    """
    launcher = os.environ.get('VCMAMBA_MM_LAUNCHER')  # set by _torchrun.py
    if launcher and sys.platform == 'linux':
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != int(launcher):
            sys.exit('error: the launcher has ended')


@contextmanager
def _empty_data(key: str) -> Iterator[None]:
    """Say what it means when MMEngine has no samples to store."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):
            raise
        raise SettingError(
            f'{key} finds no images: look at its data_root and data_prefix, '
            "and at how files end (of mmseg's data sets img_suffix tells that)"
        ) from error


def _check_loop(name: str, loop: BaseLoop) -> None:
    """Look for what would end a run as late as in its first validation.

    Raises:
        SettingError: If validation comes after every 0 epochs or iterations,
            or classes that are measured have no names.
    """
    if getattr(loop, 'val_interval', 1) < 1:
        raise SettingError(
            f'train_cfg.val_interval must be at least 1, got '
            f'{loop.val_interval}: --no-validate leaves validation out'
        )
    metrics = loop.evaluator.metrics if hasattr(loop, 'evaluator') else []
    names = [type(metric).__name__ for metric in metrics]
    if 'IoUMetric' in names and not classes_of(loop.dataloader):
        raise SettingError(
            f'{name}_dataloader.dataset has no names of classes, which '
            'IoUMetric wants: set metainfo=dict(classes=(...), palette=[...])'
        )


def build_runner(cfg: Config, *loops: str) -> SafeRunner | ShardedRunner:
    """Build the runner, and the loops named, so that what is wrong shows now.

    Args:
        cfg: From ``load_config``. With a ``strategy`` a ``ShardedRunner``
            trains.
        *loops: Which of 'train', 'val', 'test' will run.
    """
    check_data(cfg, *loops)
    _end_with_launcher()
    name_unreadable(cfg, *loops)
    if 'train' in loops:
        check_switches(cfg)
        check_pretrained(cfg)
    sharded = 'train' in loops and cfg.get('strategy') is not None
    if sharded:
        from . import fsdp  # noqa: F401 - registers it

        resume = cfg.get('resume_from')
        if resume == 'auto':
            resume, _ = find_resumable(cfg.work_dir) or (None, None)
        cfg.resume = bool(resume)
        cfg.load_from = resume or cfg.get('load_from')
        if not resume and cfg.get('load_weights'):
            if type_name(cfg.strategy).split('.')[-1] != 'FSDP2Strategy':
                raise ValueError(
                    'load_weights: of the strategies only FSDP2Strategy has '
                    'the choice, leave it out'
                )
            cfg.strategy.load_weights = cfg.load_weights
        for loop in loops:
            forget_workers(cfg.get(f'{loop}_dataloader') or {})
        _check_type(
            OPTIMIZERS,
            cfg.optim_wrapper.get('optimizer'),
            cfg.get('default_scope'),
        )
    if get_device() == 'cpu':
        adapt_to_cpu(cfg)
    runner = (ShardedRunner if sharded else SafeRunner).from_cfg(cfg)
    for loop in loops:
        # Access builds the loop with its data set.
        if cfg.get(f'{loop}_dataloader'):
            with _empty_data(f'{loop}_dataloader.dataset'):
                built = getattr(runner, f'{loop}_loop')
            dataloader = getattr(built, 'dataloader', None)
            for part in parts_of(getattr(dataloader, 'dataset', None)):
                compare_folders(part)
            _check_loop(loop, built)
    if 'train' in loops:
        check_classes(runner)
    return runner
