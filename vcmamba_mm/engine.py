"""What the command-line tools share: config, device, runner, errors."""

import ctypes
import inspect
import multiprocessing
import os
import re
import signal
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.registry import FUNCTIONS, OPTIMIZERS, Registry
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .checkpoint import (
    WEIGHT_ENTRIES,
    WEIGHTS,
    CheckpointError,
    check_fit,
    check_resumable,
    extract_state_dict,
    find_resumable,
    read_checkpoint,
)
from .datasets.sampling import SeedError
from .errors import SettingError, meaning, message
from .hooks import NonFiniteError
from .loops import ResumeError, check_start
from .masks import compare_folders
from .models.vcmamba import InputSizeError
from .ops.scan import BackendError
from .optim import CPUAmpOptimWrapper
from .results import parts_of
from .transforms import AnnotationError


class Options(DictAction):
    """MMEngine's ``--cfg-options``; wrong ones are said in one line."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            try:
                super().__call__(parser, Namespace(), [value], option_string)
            except (ValueError, AssertionError, RecursionError):
                raise ArgumentError(
                    self,
                    f'{value}: is no KEY=VALUE, or the value neither a word, '
                    'a number, nor a list of those; write what is more into a '
                    'config',
                ) from None
        super().__call__(parser, namespace, values, option_string)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; by default '
        'work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. '
        'train_dataloader.batch_size=64 model.backbone.drop_path_rate=0.1',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started',
    )
    # `torch.distributed.launch` passes it; torchrun sets LOCAL_RANK instead.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        dest='local_rank',
        help='set by torch.distributed.launch',
    )


def add_weights_argument(parser: ArgumentParser) -> None:
    """Add the choice of weights to a tool that reads a checkpoint."""
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help='which weights of a checkpoint that also holds their average: '
        'raw, or ema for the average; by default those that were ranked when '
        'its run validated',
    )


@contextmanager
def one_line_errors(*errors: type[Exception]) -> Iterator[None]:
    """End the program with one line and exit code 2 on one of ``errors``.

    So do those that a wrong setting is known for, of whatever type. With
    ``VCMAMBA_MM_TRACEBACK=1`` in the environment they all pass through.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, errors) or meaning(error)
        if not known or os.environ.get('VCMAMBA_MM_TRACEBACK') == '1':
            raise
        print(
            f'error: {message(error)} (VCMAMBA_MM_TRACEBACK=1 shows where)',
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)


# What a wrong config, path or checkpoint raises while things are set up ...
SETUP_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    OSError,
    ImportError,
)


class ProcessError(RuntimeError):
    """A data worker, or another process of the run, hangs or is gone."""


@contextmanager
def _setting(key: str) -> Iterator[None]:
    """Say which setting is wrong."""
    try:
        yield
    except SETUP_ERRORS as error:
        raise SettingError(f'{key}: {message(error)}') from error


# ... and what may only turn up while the loop runs.
LOOP_ERRORS = (
    CheckpointError,
    ProcessError,
    InputSizeError,
    AnnotationError,
    BackendError,
    NonFiniteError,
    ResumeError,
    SeedError,
    SettingError,
    OSError,
    ImportError,
)


# Top-level settings that are read, by MMEngine's runner or the tools; the
# others are a config's own variables.
_SETTINGS = {
    *inspect.signature(Runner.__init__).parameters,
    *('activation_checkpointing', 'compile', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'strategy', 'sync_bn'),
    *('auto_scale_lr', 'custom_imports', 'tta_model', 'tta_pipeline'),
    'load_weights',
}


def _places(cfg: Config, name: str) -> list[str]:
    """Where below the settings a key of this name stands."""
    places = []

    def look(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, its in value.items():
                if key == name:
                    places.append(f'{path}.{key}')
                look(its, f'{path}.{key}')

    for key, value in cfg.items():
        if key in _SETTINGS:
            look(value, key)
    return places


def load_config(args: Namespace) -> Config:
    """Read the config and merge what the command line says.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If an option of ``--cfg-options`` names a setting that
            neither the config nor MMEngine's runner has, or one that only
            other parts of the config file use.
    """
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'config {args.config} does not exist')
    cfg = Config.fromfile(args.config)
    for option in args.cfg_options or {}:
        keys = option.split('.')
        name = keys[0]
        if name in _SETTINGS:
            continue
        if name not in cfg:
            raise ValueError(
                f'--cfg-options {option}: the config has no {name!r}'
            )
        places = ', '.join(_places(cfg, keys[-1])) or 'what it is used for'
        raise ValueError(
            f'--cfg-options {option}: {name!r} is used inside the config file '
            f'only, and has been: set {places}'
        )
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def check_data(cfg: Config, *loops: str) -> None:
    """Look for the data folders of the given loops ('train', 'val', 'test').

    Raises:
        FileNotFoundError: If one is missing.
    """
    for loop in loops:
        dataset = (cfg.get(f'{loop}_dataloader') or {}).get('dataset', {})
        root = dataset.get('data_root')
        if root and '://' not in root and not os.path.isdir(root):
            raise FileNotFoundError(
                f'data folder {root} does not exist: put or link the data set '
                'there, or name another place with --cfg-options '
                f'{loop}_dataloader.dataset.data_root=DIR'
            )


def name_unreadable(cfg: Config, *loops: str) -> None:
    """Have pictures and masks that cannot be read, do not fit, or are left
    out, named, in place.
    """
    scope = cfg.get('default_scope')

    def of(project: str, name: str) -> str:
        """A type of a project, as a config may call it."""
        optional = '?' if scope == project else ''
        return rf'({project}\.([\w.]+\.)?){optional}{name}'

    segments = scope == 'mmseg'
    for loop in loops:
        dataloader = cfg.get(f'{loop}_dataloader')
        loading = r'(mm[\w.]+\.)?LoadImageFromFile'
        replace_type(dataloader, loading, 'LoadImageStrict')
        masks = of('mmseg', 'LoadAnnotations')
        segments |= bool(replace_type(dataloader, masks, 'LoadMaskStrict'))
        folders = of('mmpretrain', 'CustomDataset')
        if replace_type(dataloader, folders, 'mmpretrain.ClassFolders'):
            from . import classification  # noqa: F401 - registers it
    if segments:
        cfg.default_hooks = cfg.get('default_hooks') or ConfigDict()
        cfg.default_hooks.setdefault(
            'check_masks', dict(type='CheckMasksHook')
        )


def type_name(cfg: dict) -> str:
    """What a config's type is called, with its module if it is a class."""
    kind = cfg.get('type')
    if isinstance(kind, type):  # of a config in pure Python
        return f'{kind.__module__}.{kind.__name__}'
    return str(kind)


def replace_type(cfg: ConfigDict | list, old: str, new: str) -> int:
    """Turn every type that ``old``, a regular expression, matches as a whole
    into ``new``, in place; return how many.
    """
    if isinstance(cfg, (list, tuple)):
        return sum(replace_type(value, old, new) for value in cfg)
    if not isinstance(cfg, dict):
        return 0
    count = sum(replace_type(value, old, new) for value in cfg.values())
    if re.fullmatch(old, type_name(cfg)):
        cfg['type'] = new
        count += 1
    return count


def adapt_to_cpu(cfg: Config) -> None:
    """Let a config written for GPUs run without one.

    SyncBN, which refuses CPU tensors, becomes BN; mixed precision gets an
    optimizer wrapper that does not refuse them; several processes talk over
    gloo; nothing is pinned. What changes the result is said in one line.
    """
    replace_type(
        cfg.get('optim_wrapper'),
        r'(mm[\w.]+\.)?AmpOptimWrapper',
        CPUAmpOptimWrapper.__name__,
    )
    synced = r'(mm[\w.]+\.)?SyncBN|(torch\.nn\.([\w.]+\.)?)?SyncBatchNorm'
    if replace_type(cfg.model, synced, 'BN'):
        print_log(
            'No GPU: SyncBN becomes BN (each process normalizes its own batch)'
        )
    for loop in ('train', 'val', 'test'):
        if cfg.get(f'{loop}_dataloader'):
            cfg[f'{loop}_dataloader'].pin_memory = False
    if cfg.launcher == 'none':
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs GPUs: on CPUs use '
            'tools/dist_train.sh or tools/dist_test.sh'
        )
    print_log('No GPU: the processes talk over gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=True,  # running statistics, BN's are not synced
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if not dist.is_initialized():
        dist.init_process_group('gloo')


# What PyTorch's messages about other processes begin with or hold, and mean.
_PROCESS_ERRORS = {
    r'DataLoader timed out': '{error}: the storage is too slow or a data '
    'worker hangs; train_dataloader.timeout is the limit',
    r'DataLoader worker': '{error}: something killed a data worker, often for '
    'want of memory; train_dataloader.num_workers is their number',
    r'.*(gloo|NCCL)': '{error}: another process of the run ended first or '
    'hangs; its own last line says why',
}


@contextmanager
def _process_errors() -> Iterator[None]:
    """Say what it means when PyTorch misses another process."""
    try:
        yield
    except Exception as error:
        # A dead worker is a signal, which may come while anything is done, so
        # that the error is inside of another one.
        cause = error
        while cause is not None:
            for pattern, meaning in _PROCESS_ERRORS.items():
                if isinstance(cause, RuntimeError) and re.match(
                    pattern, str(cause), re.DOTALL
                ):
                    _kill_data_workers()
                    sentence = str(cause).split('. ')[0]
                    raise ProcessError(
                        meaning.format(error=sentence)
                        + '. Training goes on with --resume'
                    ) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _kill_data_workers() -> None:
    """One that hangs would keep this process from ending."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would raise
    for worker in multiprocessing.active_children():
        worker.kill()


# Settings of a data loader that PyTorch refuses where there are no workers.
_OF_WORKERS = (
    'timeout',
    'persistent_workers',
    'prefetch_factor',
    'multiprocessing_context',
)


def _forget_workers(dataloader: dict) -> None:
    """Drop the settings of workers where there are none, in place."""
    if not dataloader.get('num_workers'):
        for key in _OF_WORKERS:
            dataloader.pop(key, None)


def _check_type(registry: Registry, cfg: dict | None) -> None:
    """Look whether a registry has a type, where MMEngine does not.

    Raises:
        KeyError: If not, with what MMEngine says of the others.
    """
    name = cfg.get('type') if isinstance(cfg, dict) else None
    if isinstance(name, str):
        with registry.switch_scope_and_registry(None) as registry:
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
    sets of weights is taken, as in ``checkpoint.take_weights``. A resumed run
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
            _forget_workers(dataloader)
            _check_type(FUNCTIONS, dataloader.get('collate_fn'))
        return Runner.build_dataloader(dataloader, *args, **kwargs)

    def train(self) -> nn.Module:
        """As MMEngine's.

        Raises:
            ProcessError: If another process hangs or is gone.
        """
        with _process_errors():
            return super().train()

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
            model = self.model
            if is_model_wrapper(model):
                model = model.module
            model.backbone.compile(**({} if options is True else options))

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
        model: nn.Module = self.model
        if is_model_wrapper(model):
            model = model.module
        if isinstance(model, BaseTTAModel):
            model = model.module
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
            _compare_classes(
                tuple(meta.get('classes') or ()),
                _classes(self.test_loop.dataloader),
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
        super().save_checkpoint(
            out_dir,
            filename,
            file_client_args,
            *args,
            meta=meta,
            backend_args=backend_args,
            **kwargs,
        )


def _classes(dataloader: DataLoader) -> tuple[str, ...]:
    """Names of the classes of a data set, empty if it has none."""
    metainfo = getattr(dataloader.dataset, 'metainfo', {})
    return tuple(metainfo.get('classes') or ())


def _compare_classes(
    training: tuple[str, ...], others: tuple[str, ...], name: str
) -> None:
    """Look for a class that has one number here and another one there.

    Data that name their classes otherwise, or lack the last ones, are right.
    """
    numbers = {its: i for i, its in enumerate(training)}
    for its, i in {its: i for i, its in enumerate(others)}.items():
        if numbers.get(its, i) != i:
            raise SettingError(
                f'class {its!r} is number {i} in the {name} data, in the '
                f'training data it is {numbers[its]}: both need the same '
                'classes in the same order (for a folder for each class: the '
                'same folders)'
            )


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The heads that have a number of classes, with their keys."""
    for key in ('head', 'decode_head', 'auxiliary_head', 'bbox_head'):
        heads = getattr(getattr(model, 'roi_head', model), key, None)
        if not isinstance(heads, nn.ModuleList):  # of a cascade
            heads = [heads]
        for head in heads:
            if getattr(head, 'num_classes', None):
                yield f'model.{key}', head


def _check_losses(key: str, head: nn.Module) -> None:
    """Look whether a head and its losses go together.

    Raises:
        SettingError: If a loss weighs another number of outputs, or the one
            output that mmseg has for two classes is not used for two.
    """
    outputs = getattr(head, 'out_channels', head.num_classes)
    outputs += hasattr(head, 'num_queries')  # they weigh "no object", too
    losses = list(head.modules())
    for name in ('class_weight', 'pos_weight'):
        for loss in losses:
            weight = getattr(loss, name, None)
            if hasattr(weight, '__len__') and len(weight) != outputs:
                raise SettingError(
                    f'{name} of the {type(loss).__name__} of {key} has '
                    f'{len(weight)} numbers for {outputs} outputs: give one '
                    'for each'
                )
    binary = getattr(head, 'out_channels', None) == 1
    softmax = any(getattr(x, 'use_sigmoid', None) is False for x in losses)
    if binary and (softmax or head.num_classes == 1):
        raise SettingError(
            f'{key} has one output: to tell an object from its background '
            'set num_classes=2, out_channels=1 and '
            'loss_decode.use_sigmoid=True, and name both in metainfo'
        )


def check_classes(runner: Runner) -> None:
    """Compare the classes of the training data with all that has a number.

    Raises:
        SettingError: If the head, the weights of its loss or what mixes
            pictures have another number of them, or the validation data
            number them otherwise.
    """
    model = (
        runner.model.module if is_model_wrapper(runner.model) else runner.model
    )
    classes = _classes(runner.train_loop.dataloader)
    numbers = []
    for key, head in _heads(model):
        if key != 'model.auxiliary_head':  # may have classes of its own
            numbers.append(('the head', head.num_classes, key))
        # MMEngine's runner of sharded models builds them later; that of boxes
        # weighs the background, too.
        if isinstance(head, nn.Module) and key != 'model.bbox_head':
            _check_losses(key, head)
    preprocessor = getattr(model, 'data_preprocessor', None)
    if getattr(preprocessor, 'batch_augments', None):
        number = getattr(preprocessor, 'num_classes', None)
        numbers.append(('what mixes pictures', number, 'data_preprocessor'))
    for name, number, key in numbers:
        if classes and number and number != len(classes):
            raise SettingError(
                f'the training data has {len(classes)} classes, {name} '
                f'{number}: set {key}.num_classes in the config'
            )
    if runner.val_loop is not None:
        _compare_classes(
            classes, _classes(runner.val_loop.dataloader), 'validation'
        )


def end_with_launcher() -> None:
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


def check_switches(cfg: Config) -> None:
    """Look for settings of training that exclude each other.

    Raises:
        ValueError: If there are some.
    """
    backbone = cfg.model.get('backbone', {})
    if cfg.get('compile') and backbone.get('with_cp'):
        raise ValueError(
            'compile and model.backbone.with_cp exclude each other: '
            'torch.compile cannot look into checkpoints, leave one out'
        )
    if cfg.get('strategy') is None:
        return
    if cfg.launcher == 'none':
        raise ValueError(
            'strategy: needs processes to share the work, start them with '
            'tools/dist_train.sh'
        )
    if cfg.get('resume_from') not in (None, 'auto') and int(
        os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)
    ):
        raise ValueError(
            'strategy: after each restart (MAX_RESTARTS) the run would begin '
            f'again with {cfg.resume_from}: say --resume without a file, '
            'which takes the latest checkpoint of the work dir'
        )
    if backbone.get('channels_last'):
        raise ValueError(
            'strategy: FSDP cannot shard weights in channels-last memory, '
            'leave model.backbone.channels_last out'
        )
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook).endswith('EMAHook'):
            raise ValueError(
                'strategy: sharded weights cannot be averaged, leave '
                f'{type_name(hook)} out, e.g. with --cfg-options '
                'custom_hooks=[]'
            )


def check_pretrained(cfg: Config) -> None:
    """Look for a whole model's weights where MMEngine loads what fits.

    Raises:
        SettingError: If there are some: nothing may fit.
    """
    init_cfgs = cfg.model.get('init_cfg') or []
    if isinstance(init_cfgs, dict):
        init_cfgs = [init_cfgs]
    files = [its.get('checkpoint') for its in init_cfgs]
    if cfg.get('default_scope') == 'mmpretrain':  # mmseg's is the backbone's
        files.append(cfg.model.get('pretrained'))
    for file in filter(None, files):
        raise SettingError(
            f'model.init_cfg or model.pretrained={file!r}: MMEngine would '
            f'load what fits of it, or nothing. Set load_from={file!r} to '
            'load all of it, or init_cfg of model.backbone for that part'
        )


@contextmanager
def _empty_data(key: str) -> Iterator[None]:
    """Say what it means when MMEngine has no samples to store."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):
            raise
        raise SettingError(
            f'{key} finds no pictures: look at its data_root and data_prefix, '
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
    if 'IoUMetric' in names and not _classes(loop.dataloader):
        raise SettingError(
            f'{name}_dataloader.dataset has no names of classes, which '
            'IoUMetric wants: set metainfo=dict(classes=(...), palette=[...])'
        )


def build_runner(cfg: Config, *loops: str) -> SafeRunner | FlexibleRunner:
    """Build the runner, and the loops named, so that what is wrong shows now.

    Args:
        cfg: From ``load_config``. With a ``strategy`` MMEngine's
            ``FlexibleRunner`` trains.
        *loops: Which of 'train', 'val', 'test' will run.
    """
    check_data(cfg, *loops)
    end_with_launcher()
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
            _forget_workers(cfg.get(f'{loop}_dataloader') or {})
        _check_type(OPTIMIZERS, cfg.optim_wrapper.get('optimizer'))
    if get_device() == 'cpu':
        adapt_to_cpu(cfg)
    runner = (FlexibleRunner if sharded else SafeRunner).from_cfg(cfg)
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
