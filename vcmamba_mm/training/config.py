"""Configs: reading, what in them cannot be, and what a CPU needs."""

import inspect
import os
import re
from argparse import Namespace
from pathlib import Path

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..data.pictures import type_name
from .errors import SettingError
from .optim import CPUAmpOptimWrapper

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


def name_unreadable(cfg: Config, *loops: str) -> None:
    """Have images and masks that cannot be read, do not fit, or are left
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
            from .. import classification  # noqa: F401 - registers it
    if segments:
        cfg.default_hooks = cfg.get('default_hooks') or ConfigDict()
        cfg.default_hooks.setdefault(
            'check_masks', dict(type='CheckMasksHook')
        )


_AMP = r'(mm[\w.]+\.)?AmpOptimWrapper'


def set_precision(cfg: Config, dtype: str) -> None:
    """Let training compute in 'float16', 'bfloat16', or 'float32'.

    The first two by automatic mixed precision. float16 always scales the loss:
    where the config switches that off, as bfloat16 has it, it is dynamic.
    """
    wrapper = cfg.optim_wrapper
    if dtype == 'float32':
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.dtype = dtype
        # bfloat16 has the range of float32: nothing to scale.
        scale = dict(enabled=False) if dtype == 'bfloat16' else 'dynamic'
        asked = wrapper.setdefault('loss_scale', scale)
        is_off = isinstance(asked, dict) and not asked.get('enabled', True)
        if dtype == 'float16' and is_off:
            wrapper.loss_scale = scale


def adapt_to_cpu(cfg: Config) -> None:
    """Let a config written for GPUs run without one.

    SyncBN, which refuses CPU tensors, becomes BN; float16 that the config,
    not the command line, asks for becomes float32; other mixed precision gets
    an optimizer wrapper that does not refuse CPUs; several processes talk over
    gloo; nothing is pinned. What changes the result is said in one line.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if (
        re.fullmatch(_AMP, type_name(wrapper))
        and not cfg.get('precision')
        and wrapper.get('dtype') in (None, 'float16')
    ):
        set_precision(cfg, 'float32')
        print_log(
            'No GPU: float16, which CPUs are slow with, becomes float32 '
            '(--amp float16 or bfloat16 takes these)'
        )
    replace_type(wrapper, _AMP, CPUAmpOptimWrapper.__name__)
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


# Settings of a data loader that PyTorch refuses where there are no workers.
_OF_WORKERS = (
    'timeout',
    'persistent_workers',
    'prefetch_factor',
    'multiprocessing_context',
)


def forget_workers(dataloader: dict) -> None:
    """Drop the settings of workers where there are none, in place."""
    if not dataloader.get('num_workers'):
        for key in _OF_WORKERS:
            dataloader.pop(key, None)


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
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or []]
    saving = cfg.get('default_hooks', {}).get('checkpoint') or {}
    best = saving.get('save_best')
    if (
        cfg.get('val_cfg') is not None
        and str(best).endswith('_ema')
        and not any('EMA' in hook for hook in hooks)
    ):
        raise ValueError(
            f'default_hooks.checkpoint.save_best: {best} is measured where a '
            'hook of custom_hooks keeps an average, as RawAndEMAHook does: '
            "add it, or choose 'auto'"
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
    optimizer = cfg.get('optim_wrapper', {}).get('optimizer') or {}
    if type_name(cfg.strategy).endswith('FSDP2Strategy') and type_name(
        optimizer
    ).endswith('Lamb'):
        raise ValueError(
            'strategy: Lamb of mmpretrain cannot take sharded weights, choose '
            'another optimizer, with its own learning rate'
        )
    for hook in hooks:
        if hook.endswith('EMAHook'):
            raise ValueError(
                'strategy: sharded weights cannot be averaged, leave '
                f'{hook} out, e.g. with --cfg-options custom_hooks=[]'
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
