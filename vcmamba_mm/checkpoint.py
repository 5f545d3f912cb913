"""Checkpoints: safe reading and writing, and the released key names.

Two layouts are read: those MMEngine writes, and the files of the authors'
release, ``dict(model=..., model_ema=..., args=argparse.Namespace(...), ...)``.
"""

import argparse
import codecs
import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType

import numpy as np
import torch
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseModule
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor, nn

from .files import write_file

StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


# --------------------------------------------------------------- safe reading


# What checkpoints refer to by name besides tensors is not called: these
# stand-ins, which do nothing else, are called in its place.

# Methods of MMEngine's log scalars and of a schedule.
_METHODS = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _getattr(owner: type, name: str) -> Callable:
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported getattr of {name!r}')


class _Dtype:
    """In place of ``numpy.dtype``: numbers only."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r'[biufc]\d+', str(code)):
            raise pickle.UnpicklingError(f'Unsupported class dtype {code!r}')
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        byteorder = state[1] if state[1] in ('<', '>') else ''
        self.code = byteorder + self.code


class _Array:
    """In place of ``numpy.ndarray``; ``value`` is the array."""

    def __init__(self, *args):
        if args:
            raise pickle.UnpicklingError('Unsupported call of ndarray')

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        order = 'F' if is_fortran else 'C'
        flat = np.frombuffer(data, dtype.code)
        self.value = flat.reshape(shape, order=order).copy()


def _reconstruct(*_) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.code)[0]


def _named(stand_in: Callable, name: str) -> Callable:
    """Give a copy of a function, or a class, the name to be looked up."""
    if not isinstance(stand_in, type):
        stand_in = FunctionType(stand_in.__code__, globals())
    stand_in.__module__, stand_in.__qualname__ = name.rsplit('.', 1)
    stand_in.__name__ = stand_in.__qualname__
    return stand_in


_SAFE_GLOBALS = [
    argparse.Namespace,  # the release's `args`
    *_METHODS,  # this and the rest: MMEngine's
    codecs.encode,  # how older pickles spell bytes
    _named(_getattr, 'builtins.getattr'),
    _named(_Dtype, 'numpy.dtype'),
    _named(_Array, 'numpy.ndarray'),
    # of NumPy 1 and 2
    _named(_reconstruct, 'numpy.core.multiarray._reconstruct'),
    _named(_reconstruct, 'numpy._core.multiarray._reconstruct'),
    _named(_scalar, 'numpy.core.multiarray.scalar'),
    _named(_scalar, 'numpy._core.multiarray.scalar'),
]


@contextmanager
def _safe_globals() -> Iterator[None]:
    """Allow ``_SAFE_GLOBALS`` for one reading."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_SAFE_GLOBALS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _without_stand_ins(value: object) -> object:
    """Put the arrays where their stand-ins are, also in log scalars."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, HistoryBuffer):
        value.__dict__.update(_without_stand_ins(value.__dict__))
    elif isinstance(value, dict):
        for key in value:
            value[key] = _without_stand_ins(value[key])
    elif type(value) in (list, tuple):
        return type(value)(map(_without_stand_ins, value))
    return value


def read_checkpoint(
    path: str | os.PathLike, map_location: str | torch.device = 'cpu'
) -> dict:
    """Read a checkpoint without running any code it may hold.

    Args:
        path: A file, or a URL of any kind that MMEngine reads.
        map_location: As in ``torch.load``.

    Returns:
        dict: What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated or altered, is no
            checkpoint, or would run code.
    """
    with get_local_path(str(path)) as local, _safe_globals():
        if not os.path.isfile(local):
            raise FileNotFoundError(f'checkpoint {path} does not exist')
        if _is_safetensors(local):
            raise CheckpointError(
                f'checkpoint {path} is in the safetensors format; read is '
                'what torch.save writes: torch.save(safetensors.torch.'
                "load_file(...), 'FILE.pth') makes one of it"
            )
        if not _is_sound(local):
            raise CheckpointError(_damaged(path))
        try:
            checkpoint = _without_stand_ins(
                torch.load(local, map_location=map_location, weights_only=True)
            )
        except pickle.UnpicklingError as error:
            refused = re.search(
                r'Unsupported (?:global|class|getattr|call)[^\n]*|GLOBAL \S+',
                str(error),
            )
            if refused or _is_plain_pickle(local):
                what = refused.group().strip() if refused else 'a pickle'
                raise CheckpointError(
                    f'checkpoint {path} was refused, it could run code when '
                    f'read ({what}): take weights from somebody you trust, '
                    'saved as tensors'
                ) from None
            raise CheckpointError(_damaged(path)) from error
        except _DAMAGE as error:
            raise CheckpointError(_damaged(path)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a '
            f'{type(checkpoint).__name__}, not a dict'
        )
    return checkpoint


# What the unpickler raises when it reads nonsense.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    struct.error,
    MemoryError,
    OverflowError,
)


def _is_sound(path: str) -> bool:
    """Look at what PyTorch believes: sizes, and the checksums it writes."""
    try:
        if not zipfile.is_zipfile(path):
            return True  # another layout, or cut: the reading shows it
        with zipfile.ZipFile(path) as file:
            items = file.infolist()
            # PyTorch does not compress, and allocates what is claimed.
            stored = all(
                item.compress_type == zipfile.ZIP_STORED
                and item.file_size == item.compress_size
                for item in items
            )
            size = sum(item.file_size for item in items)
            if not stored or size > os.path.getsize(path):
                return False
            has_sums = any(item.CRC for item in items)
            return not has_sums or file.testzip() is None
    except _DAMAGE:
        return False


def _is_plain_pickle(path: str) -> bool:
    """Whether it is a pickle, but not PyTorch's own of before it zipped."""
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    with open(path, 'rb') as file:
        head = file.read(len(magic))
    return head.startswith(pickle.PROTO) and head != magic


def _is_safetensors(path: str) -> bool:
    """It begins with the length of a header in JSON."""
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        return file.read(1) == b'{' and length < os.path.getsize(path)


def _damaged(path: str | os.PathLike) -> str:
    return (
        f'checkpoint {path} is truncated, damaged, or not a PyTorch '
        'checkpoint: copy or download it again'
    )


# -------------------------------------------------------------------- writing


def write_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """``torch.save`` by ``write_file``."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(buffer.getbuffer(), path)


# ------------------------------------------------------------------ resuming


def check_resumable(checkpoint: dict, path: str | os.PathLike) -> None:
    """Refuse a checkpoint that holds no training, only weights.

    Raises:
        CheckpointError: Then.
    """
    if not {'optimizer', 'meta', 'message_hub'} <= checkpoint.keys():
        raise CheckpointError(
            f'checkpoint {path} holds weights only, no training to '
            'resume: start from it with --cfg-options load_from=FILE'
        )


def find_resumable(
    work_dir: str | os.PathLike, begun_with: str | None = None
) -> tuple[str, dict] | None:
    """Find the newest checkpoint of a work dir that can be gone on from.

    It is the one that ``last_checkpoint`` names; if that is damaged or gone,
    the furthest of those beside it. One line is logged for each that fails.

    Args:
        work_dir: Where to look.
        begun_with: Only checkpoints of runs that were begun with this one.

    Returns:
        tuple[str, dict] | None: Path and 'meta' of the checkpoint, None if
        there is none.

    Raises:
        CheckpointError: If there are checkpoints, but none is good.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    folders = {os.path.abspath(work_dir), os.path.dirname(named) or work_dir}
    others = {
        str(path)
        for folder in folders
        for pattern in ('epoch_*.pth', 'iter_*.pth')
        for path in Path(folder).glob(pattern)
    } - {named}
    good = []
    for path in [named, *sorted(others)] if named else sorted(others):
        try:
            checkpoint = read_checkpoint(path)
            check_resumable(checkpoint, path)
        except (CheckpointError, FileNotFoundError) as error:
            print_log(f'{error}. Looking for another one.')
            continue
        if begun_with not in (None, checkpoint['meta'].get('begun_with')):
            continue
        good.append((path, checkpoint['meta']))
        if path == named:
            break
    if not good and begun_with is None and (named or others):
        raise CheckpointError(
            f'no checkpoint in {work_dir} can be resumed from (see above): '
            'name a good one with --resume FILE, or remove them to start anew'
        )
    return max(good, key=lambda item: item[1]['iter']) if good else None


# ------------------------------------------------------- released key <-> ours

# Prefixes (ours, released); inside one table the first match wins.
_MODEL_NAMES = (
    ('backbone.pos_embed', 'pos_embed'),
    ('backbone.stem.', 'patch_embed.'),
    ('neck.norm.', 'norm.'),
    ('head.fc.', 'head.'),
    ('head.fc_dist.', 'dist_head.'),
)
_DOWNSAMPLE_NAMES = (('0.', 'proj.'), ('1.', 'norm.'))
_BLOCK_NAMES = (
    ('gamma', 'layer_scale_2'),
    ('norm1.', 'norm.'),
    ('norm2.', 'norm2.'),
    ('ffn.fc1.', 'mlp.fc1.'),
    ('ffn.norm1.', 'mlp.norm1.'),
    ('ffn.dwconv.', 'mlp.mid.'),
    ('ffn.norm2.', 'mlp.mid_norm.'),
    ('ffn.fc2.', 'mlp.fc2.'),
    ('ffn.norm3.', 'mlp.norm2.'),
    ('mixer.in_proj.', 'mamba.in_conv.0.'),
    ('mixer.in_norm.', 'mamba.in_conv.1.'),
    ('mixer.dwconv.', 'mamba.conv2d.'),
    ('mixer.x_proj.', 'mamba.x_proj.'),
    ('mixer.dt_proj.', 'mamba.dt_proj.'),
    ('mixer.A_log', 'mamba.A_log'),
    ('mixer.D', 'mamba.D'),
    ('mixer.direction_B', 'mamba.direction_Bs'),
    ('mixer.norm.', 'mamba.norm.'),
    ('mixer.out_proj.', 'mamba.out_conv.1.'),
    ('mixer.out_norm.', 'mamba.out_conv.2.'),
)


def _replace_prefix(
    key: str, names: Iterable[tuple[str, str]], to: int
) -> str:
    """Swap the prefix of ``key``; ``to`` is 0 for ours, 1 for released."""
    for pair in names:
        old, new = pair[1 - to], pair[to]
        # A prefix without a dot at its end is a whole key.
        if key == old or (old.endswith('.') and key.startswith(old)):
            return new + key[len(old) :]
    raise KeyError(key)


def _key_to_ours(key: str) -> str:
    match = re.match(r'network\.(\d+)\.(.*)', key)
    if match is None:
        return _replace_prefix(key, _MODEL_NAMES, to=0)
    # network: stage 0, downsampling, stage 1, downsampling, ...
    stage, is_downsample = divmod(int(match[1]), 2)
    if is_downsample:
        rest = _replace_prefix(match[2], _DOWNSAMPLE_NAMES, to=0)
        return f'backbone.stages.{stage + 1}.downsample.{rest}'
    block, rest = match[2].split('.', 1)
    rest = _replace_prefix(rest, _BLOCK_NAMES, to=0)
    return f'backbone.stages.{stage}.blocks.{block}.{rest}'


def _key_to_released(key: str) -> str:
    match = re.match(
        r'backbone\.stages\.(\d+)\.(?:downsample|blocks\.(\d+))\.(.*)', key
    )
    if match is None:
        return _replace_prefix(key, _MODEL_NAMES, to=1)
    stage, block, rest = int(match[1]), match[2], match[3]
    if block is None:
        rest = _replace_prefix(rest, _DOWNSAMPLE_NAMES, to=1)
        return f'network.{2 * stage - 1}.{rest}'
    rest = _replace_prefix(rest, _BLOCK_NAMES, to=1)
    return f'network.{2 * stage}.{block}.{rest}'


def _rename(
    state_dict: StateDict, rename: Callable[[str], str], kind: str
) -> StateDict:
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        try:
            renamed[rename(key)] = value
        except (KeyError, ValueError):
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f'{len(unknown)} keys are not those of a '
            f'{kind} VCMamba classifier: {_some(unknown)}'
        )
    return renamed


def from_released(state_dict: StateDict) -> StateDict:
    """Rename the keys of a released state dict to a classifier's of ours."""
    return _rename(state_dict, _key_to_ours, 'released')


def to_released(state_dict: StateDict) -> StateDict:
    """The inverse of ``from_released``."""
    return _rename(state_dict, _key_to_released, 'vcmamba_mm')


def is_released(state_dict: StateDict) -> bool:
    """Whether the keys are the release's."""
    return any(
        key.startswith(('patch_embed.', 'network.')) for key in state_dict
    )


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = sorted(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


# --------------------------------------------------------------- state dicts

# The two sets of weights that a checkpoint may hold: those that were trained,
# and their average.
WEIGHTS = ('raw', 'ema')

# Under which entries; the set that is taken by default comes first.
_LAYOUTS = (
    # MMEngine's EMAHook saves the average in the place of the weights, and
    # the weights as the average.
    (
        dict(ema='state_dict', raw='ema_state_dict'),
        "which MMEngine's EMAHook validates, and the file names no other",
    ),
    (
        dict(raw='state_dict', ema='state_dict_ema'),
        "which timm's files are loaded with",
    ),
    (
        dict(raw='model', ema='model_ema'),
        "which the release's own test takes",
    ),
)

# Under which entries checkpoints have weights
WEIGHT_ENTRIES = {entry for sets, _ in _LAYOUTS for entry in sets.values()}


def _split(weights: dict) -> dict[str | None, dict]:
    """Find the weights that MMCV's EMAHook kept among their average."""
    kept = {key: f'ema_{str(key).replace(".", "_")}' for key in weights}
    raw = {key: weights[name] for key, name in kept.items() if name in weights}
    if not raw:
        return {None: weights}
    ema = {k: v for k, v in weights.items() if k not in kept.values()}
    return dict(ema=ema, raw={**ema, **raw})


def _weight_sets(checkpoint: dict) -> tuple[dict[str | None, dict], str]:
    """Find the sets of weights by name, and say why the first is first.

    A set without another one has no name: nothing tells which it is.
    """
    for layout, reason in _LAYOUTS:
        sets = {
            kind: checkpoint[entry]
            for kind, entry in layout.items()
            if isinstance(checkpoint.get(entry), dict)
        }
        if len(sets) < 2:
            continue
        meta = checkpoint.get('meta')
        ranked = meta.get('weights') if isinstance(meta, dict) else None
        if ranked in WEIGHTS:
            return {ranked: sets[ranked], **sets}, 'which its run ranked'
        return sets, reason
    entries = (checkpoint.get('state_dict'), checkpoint.get('model'))
    weights = next((e for e in entries if isinstance(e, dict)), checkpoint)
    return _split(weights), "which MMCV's EMAHook validated"


def take_weights(
    checkpoint: dict, source: str | os.PathLike, weights: str | None = None
) -> StateDict:
    """Take the weights out of a checkpoint, with the names that they have.

    Args:
        checkpoint: What ``read_checkpoint`` returned.
        source: Where it came from, for messages.
        weights: Which, if there are two sets: 'raw' or their average 'ema'.
            By default those that the validation of that run ranked, which
            ``checkpoint['meta']['weights']`` says; if it does not, those that
            whoever wrote the file tests. One line says which.

    Raises:
        CheckpointError: If there are no weights in it, or not those.
        ValueError: If there is no such choice.
    """
    if weights not in (None, *WEIGHTS):
        raise ValueError(
            f'weights must be one of {WEIGHTS}, or None, got {weights!r}'
        )
    sets, reason = _weight_sets(checkpoint)
    kind = weights or next(iter(sets))
    if kind not in sets:
        raise CheckpointError(
            f'checkpoint {source} holds one set of weights and does not say '
            f'which: do not ask for {weights!r} to take it'
        )
    state_dict = sets[kind]
    # A wrapper's; of an average it has tensors of its own beside the model's.
    prefix = 'module.'
    if any(str(key).startswith(prefix) for key in state_dict):
        state_dict = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if str(key).startswith(prefix)
        }
    if not state_dict or not all(
        isinstance(key, str) and isinstance(value, Tensor)
        for key, value in state_dict.items()
    ):
        raise CheckpointError(
            f"checkpoint {source} holds no weights under 'state_dict' or "
            f"'model'; its entries are: {_some(map(str, checkpoint))}"
        )
    if len(sets) == 2:
        (other,) = sets.keys() - {kind}
        print_log(
            f'{source} holds two sets of weights: {kind!r} is loaded, '
            f'{"as asked" if weights else reason}; {other!r} is the other '
            'one (--weights, weights, load_weights)',
            logger='current',
        )
    return dict(state_dict)


def extract_state_dict(
    checkpoint: dict, source: str | os.PathLike, weights: str | None = None
) -> StateDict:
    """Take the weights out of a checkpoint, in our names.

    Args and errors: as ``take_weights``.
    """
    state_dict = take_weights(checkpoint, source, weights)
    return from_released(state_dict) if is_released(state_dict) else state_dict


def check_fit(
    module: nn.Module,
    state_dict: StateDict,
    source: str | os.PathLike,
    load_from: bool = False,
) -> None:
    """Compare names and shapes before anything is loaded.

    Position embeddings may come with another grid: the model resizes them.

    Args:
        module: What would be loaded.
        state_dict: Its weights, in our names.
        source: Where they came from, for the message.
        load_from: Whether a training is to begin with them.

    Raises:
        CheckpointError: If keys are missing or left over, or shapes differ;
            it lists them, and says what helps where only other channels or,
            with ``load_from``, other classes are the cause.
    """
    own = module.state_dict()
    missing, left_over = own.keys() - state_dict, state_dict.keys() - own
    reshaped = [
        key
        for key in own.keys() & state_dict
        if _fixed_shape(key, own) != _fixed_shape(key, state_dict)
    ]
    shapes = [
        f'{k} {tuple(state_dict[k].shape)} for {tuple(own[k].shape)}'
        for k in reshaped
    ]
    problems = [
        f'{what}: {_some(names)}'
        for what, names in (
            ('missing', missing),
            ('left over', left_over),
            ('of another shape', shapes),
        )
        if names
    ]
    if not problems:
        return
    first = _first_conv(module)
    if first in reshaped and _fits_adapted(state_dict[first], own[first]):
        problems.append(
            'adapt_in_channels=True in init_cfg of the backbone adapts its '
            'first convolution to another number of channels'
        )
    fitting = [
        part
        for part in ('backbone', 'neck')
        if any(key.startswith(part) for key in own)
        and not any(
            key.startswith(part) for key in (*missing, *left_over, *reshaped)
        )
    ]
    if load_from and fitting:
        settings = ' and '.join(
            f"model.{part}.init_cfg=dict(type='Pretrained', prefix='{part}', "
            f"checkpoint='{source}')"
            for part in fitting
        )
        problems.append(
            f'load_from takes whole models: for its {" and ".join(fitting)} '
            f'with another head or other classes set {settings} instead'
        )
    matched = len(own.keys() & state_dict.keys()) - len(reshaped)
    raise CheckpointError(
        f'checkpoint {source} does not fit {type(module).__name__} '
        f'({matched} of {len(own)} keys match). ' + '; '.join(problems)
    )


def _fixed_shape(key: str, state_dict: StateDict) -> torch.Size:
    """Without the grid of a position embedding."""
    shape = state_dict[key].shape
    return shape[:2] if key.endswith('pos_embed') else shape


def _first_conv(module: nn.Module) -> str | None:
    """Name of the weight that the channels of the input meet."""
    for name, its in module.named_modules():
        if isinstance(its, nn.Conv2d):
            return f'{name}.weight'
    return None


def _fits_adapted(weight: Tensor, wanted: Tensor) -> bool:
    """Whether they are those of convolutions that differ in their input."""
    shapes = [
        (len(shape), shape[:1], shape[2:])
        for shape in (weight.shape, wanted.shape)
    ]
    return shapes[0] == shapes[1]


def _adapt_in_channels(weight: Tensor, wanted: Tensor) -> Tensor:
    """Give a convolution's weight another number of input channels."""
    before, channels = weight.shape[1], wanted.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight[:, torch.arange(channels) % before]
    return repeated * (before / channels)


def init_from_pretrained(module: BaseModule, part: str) -> bool:
    """Load ``init_cfg=dict(type='Pretrained', checkpoint=...)``, all or none.

    Further keys of ``init_cfg``: ``weights``, as in ``take_weights``;
    ``prefix``; and ``adapt_in_channels``. If that is true, the first
    convolution of a checkpoint with another number of input channels is
    adapted. To one: it gets the sum over them, so a grey picture gives what
    the same grey in all of them gave. To n: channel i gets the weights of
    channel i modulo c of the checkpoint's c (of three: red, green, blue, red,
    ...), times c / n.

    Args:
        module: Backbone or neck.
        part: Its name in a whole model, the prefix its keys have there;
            ``init_cfg['prefix']`` replaces it. A checkpoint without any such
            key is taken for one of the module alone.

    Returns:
        bool: False, and nothing done, if ``init_cfg`` asks for no checkpoint.

    Raises:
        CheckpointError: If not every key fits.
        ValueError: If ``init_cfg`` holds something else.
    """
    init_cfgs = module.init_cfg or []
    if isinstance(init_cfgs, dict):
        init_cfgs = [init_cfgs]
    pretrained = [c for c in init_cfgs if c['type'] == 'Pretrained']
    if not pretrained:
        return False
    if len(init_cfgs) > 1:
        raise ValueError(
            "init_cfg: 'Pretrained' loads every parameter, leave out the rest"
        )
    cfg = pretrained[0]
    known = ('checkpoint', 'prefix', 'weights', 'adapt_in_channels')
    # MMEngine's `map_location` means nothing here: modules stay where they are
    unknown = cfg.keys() - {'type', 'map_location', *known}
    if unknown:
        raise ValueError(
            f"init_cfg: 'Pretrained' takes {', '.join(known)}; got "
            f'{_some(unknown)}'
        )
    path = cfg['checkpoint']
    prefix = cfg.get('prefix', part).rstrip('.') + '.'
    state_dict = extract_state_dict(
        read_checkpoint(path), path, cfg.get('weights')
    )
    if any(k.startswith(prefix) for k in state_dict):
        state_dict = {
            k.removeprefix(prefix): v
            for k, v in state_dict.items()
            if k.startswith(prefix)
        }
    first = _first_conv(module)
    if cfg.get('adapt_in_channels') and first in state_dict:
        wanted = module.get_parameter(first)
        if _fits_adapted(state_dict[first], wanted):
            state_dict[first] = _adapt_in_channels(state_dict[first], wanted)
    check_fit(module, state_dict, path)
    module.load_state_dict(state_dict)
    module._is_init = True
    print_log(
        f'{type(module).__name__}: all {len(state_dict)} keys loaded from '
        f'{path}',
        logger='current',
    )
    return True
