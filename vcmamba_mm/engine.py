"""What the command-line tools share: config, device, runner, errors."""

import inspect
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from .checkpoint import (
    CheckpointError,
    check_fit,
    extract_state_dict,
    read_checkpoint,
)
from .labels import MaskError
from .models.vcmamba import InputSizeError
from .ops.scan import BackendError
from .optim import CPUAmpOptimWrapper
from .transforms import ImageReadError


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
        action=DictAction,
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


@contextmanager
def one_line_errors(*errors: type[Exception]) -> Iterator[None]:
    """End the program with one line and exit code 2 on one of ``errors``.

    With ``VCMAMBA_MM_TRACEBACK=1`` in the environment they pass through.
    """
    try:
        yield
    except errors as error:
        if os.environ.get('VCMAMBA_MM_TRACEBACK') == '1':
            raise
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        if 'Original Traceback' in text:  # from a worker of a data loader
            text = text.strip().splitlines()[-1].split(': ', 1)[-1]
        print(
            f'error: {" ".join(text.split())} '
            '(VCMAMBA_MM_TRACEBACK=1 shows where)',
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)


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
# ... and what may only turn up while the loop runs.
LOOP_ERRORS = (
    CheckpointError,
    ImageReadError,
    InputSizeError,
    MaskError,
    BackendError,
    FileNotFoundError,
    ImportError,
)


def load_config(args: Namespace) -> Config:
    """Read the config and merge what the command line says.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If an option of ``--cfg-options`` names a setting that
            neither the config nor MMEngine's runner has.
    """
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'config {args.config} does not exist')
    cfg = Config.fromfile(args.config)
    known = {*cfg, 'compile', 'strategy'}
    known.update(inspect.signature(Runner.__init__).parameters)
    for option in args.cfg_options or {}:
        if option.split('.')[0] not in known:
            raise ValueError(
                f'--cfg-options {option}: the config has no '
                f'{option.split(".")[0]!r}'
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


def _replace_type(cfg: ConfigDict | list, old: str, new: str) -> int:
    """Turn every ``type=old`` into ``new``, in place; return how many."""
    if isinstance(cfg, (list, tuple)):
        return sum(_replace_type(value, old, new) for value in cfg)
    if not isinstance(cfg, dict):
        return 0
    count = sum(_replace_type(value, old, new) for value in cfg.values())
    if cfg.get('type') == old:
        cfg['type'] = new
        count += 1
    return count


def adapt_to_cpu(cfg: Config) -> None:
    """Let a config written for GPUs run without one.

    SyncBN, which refuses CPU tensors, becomes BN; mixed precision gets an
    optimizer wrapper that does not refuse them; several processes talk over
    gloo; nothing is pinned. What changes the result is said in one line.
    """
    if (cfg.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = CPUAmpOptimWrapper.__name__
    if _replace_type(cfg.model, 'SyncBN', 'BN'):
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


class SafeRunner(Runner):
    """MMEngine's runner, with checkpoints read safely, and wholly or not.

    ``load_from``, ``resume`` and the checkpoint to test may be MMEngine's or
    the authors' released files. No code in them runs; every key must match.
    """

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
        """Load weights; see :meth:`mmengine.runner.Runner.load_checkpoint`.

        Raises:
            CheckpointError: If the file cannot be read or a key is missing,
                left over, or of another shape.
        """
        # To the CPU, whatever map_location: a GPU holds the model already.
        checkpoint = read_checkpoint(filename)
        model: nn.Module = self.model
        if is_model_wrapper(model):
            model = model.module
        if isinstance(model, BaseTTAModel):
            model = model.module
        state_dict = extract_state_dict(checkpoint, filename)
        check_fit(model, state_dict, filename)
        averages = any(isinstance(hook, EMAHook) for hook in self.hooks)
        if not (averages and 'ema_state_dict' in checkpoint):
            checkpoint['state_dict'] = state_dict
        # EMAHook puts the raw weights back under this name.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continue a run; see :meth:`mmengine.runner.Runner.resume`.

        Raises:
            CheckpointError: If there are only weights in the file.
        """
        if 'optimizer' not in read_checkpoint(filename):
            raise CheckpointError(
                f'checkpoint {filename} holds weights only, no training to '
                'resume: start from it with --cfg-options load_from=FILE'
            )
        super().resume(filename, *args, **kwargs)


def check_classes(runner: Runner) -> None:
    """Compare the classes of the training data with the head's.

    Raises:
        ValueError: If their numbers differ.
    """
    model = (
        runner.model.module if is_model_wrapper(runner.model) else runner.model
    )
    head = getattr(model, 'head', None) or getattr(model, 'decode_head', None)
    dataset = runner.train_loop.dataloader.dataset
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    num_classes = getattr(head, 'num_classes', None)
    if classes and num_classes and len(classes) != num_classes:
        raise ValueError(
            f'the training data has {len(classes)} classes, the head '
            f'{num_classes}: set num_classes in the config'
        )


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
    if backbone.get('channels_last'):
        raise ValueError(
            'strategy: FSDP cannot shard weights in channels-last memory, '
            'leave model.backbone.channels_last out'
        )
    for hook in cfg.get('custom_hooks') or []:
        if hook['type'].endswith('EMAHook'):
            raise ValueError(
                'strategy: sharded weights cannot be averaged, leave '
                f'{hook["type"]} out, e.g. with --cfg-options custom_hooks=[]'
            )


def build_runner(cfg: Config, *loops: str) -> SafeRunner | FlexibleRunner:
    """Build the runner, and the loops named, so that what is wrong shows now.

    Args:
        cfg: From :func:`load_config`. With a ``strategy`` MMEngine's
            ``FlexibleRunner`` trains.
        *loops: Which of 'train', 'val', 'test' will run.
    """
    check_data(cfg, *loops)
    for loop in loops:
        # A picture that cannot be read is named.
        dataloader = cfg.get(f'{loop}_dataloader')
        _replace_type(dataloader, 'LoadImageFromFile', 'LoadImageStrict')
    if 'train' in loops:
        check_switches(cfg)
    sharded = 'train' in loops and cfg.get('strategy') is not None
    if sharded:
        from . import fsdp  # noqa: F401 - registers it; needs PyTorch 2.6
    if get_device() == 'cpu':
        adapt_to_cpu(cfg)
    runner = (FlexibleRunner if sharded else SafeRunner).from_cfg(cfg)
    for loop in loops:
        # Access builds the loop with its data set.
        if cfg.get(f'{loop}_dataloader'):
            getattr(runner, f'{loop}_loop')
    if 'train' in loops:
        check_classes(runner)
    return runner
