"""Which weights of a checkpoint are loaded, wholly or not at all."""

import os
from functools import cache

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .reading import CheckpointError, StateDict, read_checkpoint, some
from .released import from_released, is_released

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
# All of those
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
            f"'model'; its entries are: {some(map(str, checkpoint))}"
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
    if is_released(state_dict):
        return from_released(state_dict, source)
    return state_dict


def _fixed_shape(key: str, state_dict: StateDict) -> torch.Size:
    """Without the grid of a position embedding."""
    shape = state_dict[key].shape
    return shape[:2] if key.endswith('pos_embed') else shape


def _image_convs(module: nn.Module) -> list[str]:
    """Names of the weights that the channels of the images meet.

    The first convolution of each part that a backbone gives the images to,
    ``image_readers``; of other networks the very first one.
    """
    prefix = 'backbone.' if hasattr(module, 'backbone') else ''
    backbone = getattr(module, 'backbone', module)
    convs = [
        f'{name}.weight'
        for name, its in module.named_modules()
        if isinstance(its, nn.Conv2d)
    ]
    firsts = (
        next((conv for conv in convs if conv.startswith(prefix + part)), None)
        for part in getattr(backbone, 'image_readers', ('',))
    )
    return [conv for conv in firsts if conv]


def _fits_adapted(weight: Tensor, wanted: Tensor) -> bool:
    """Whether they are those of convolutions that differ in their input."""
    shapes = [
        (len(shape), shape[:1], shape[2:])
        for shape in (weight.shape, wanted.shape)
    ]
    return shapes[0] == shapes[1]


# What a classifier's backbone does not have, and how one says that it is new.
_NEW_PARTS = {
    'out_norms.': 'the norms of the outputs are new',
    'adapter.': 'the adapter is new',
}
# The norm after the last layer, which what takes its maps may not have.
_FINAL_NORM = 'final_norm.'


def _shapes(state_dict: StateDict, prefix: str = '') -> dict:
    """Of the layers that an architecture always has."""
    optional = tuple(
        prefix + name for name in ('pos_embed', *_NEW_PARTS, _FINAL_NORM)
    )
    return {
        key.removeprefix(prefix): weight.shape
        for key, weight in state_dict.items()
        if key.startswith(prefix) and not key.startswith(optional)
    }


@cache  # building all of them takes seconds
def _shapes_of(family: type[nn.Module], arch: str, in_channels: int) -> dict:
    with torch.device('meta'):
        return _shapes(family(arch, in_channels=in_channels).state_dict())


def _other_arch(module: nn.Module, state_dict: StateDict) -> str | None:
    """Which backbone of ours the weights are of, if not of the module's."""
    prefix = 'backbone.' if hasattr(module, 'backbone') else ''
    backbone = getattr(module, 'backbone', module)
    if not hasattr(backbone, 'arch_settings'):
        return None
    found = _shapes(state_dict, prefix)
    if found == _shapes(backbone.state_dict()):
        return None
    package = __name__.partition('.')[0] + '.'
    for name, family in MODELS.module_dict.items():
        if not family.__module__.startswith(package):
            continue  # others' classes have arch_settings of another kind
        for arch in getattr(family, 'arch_settings', ()):
            if found == _shapes_of(family, arch, backbone.in_channels):
                return f'{name}({arch!r})'
    return None


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
        f'{what}: {some(names)}'
        for what, names in (
            ('missing', missing),
            ('left over', left_over),
            ('of another shape', shapes),
        )
        if names
    ]
    if not problems:
        return
    other_arch = _other_arch(module, state_dict)
    if other_arch:
        problems.insert(0, f'It holds weights of {other_arch}')
    if any(
        conv in reshaped and _fits_adapted(state_dict[conv], own[conv])
        for conv in _image_convs(module)
    ):
        problems.append(
            'adapt_in_channels=True in init_cfg of the backbone adapts the '
            'convolutions that read the images to another number of channels'
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
    ``prefix``; and ``adapt_in_channels``. If that is true, the convolutions
    that read the images are adapted where the checkpoint has another number
    of channels. To one: it gets the sum over them, so a grey image gives what
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
            f'{some(unknown)}'
        )
    path = cfg['checkpoint']
    prefix = cfg.get('prefix', part).rstrip('.') + '.'
    state_dict = extract_state_dict(
        read_checkpoint(path), path, cfg.get('weights')
    )
    left_over = set()
    if any(k.startswith(prefix) for k in state_dict):
        left_over = {
            k.split('.')[0] for k in state_dict if not k.startswith(prefix)
        }
        state_dict = {
            k.removeprefix(prefix): v
            for k, v in state_dict.items()
            if k.startswith(prefix)
        }
    for conv in _image_convs(module) if cfg.get('adapt_in_channels') else ():
        weight, wanted = state_dict.get(conv), module.get_parameter(conv)
        if weight is not None and _fits_adapted(weight, wanted):
            state_dict[conv] = _adapt_in_channels(weight, wanted)
    own, new, news = module.state_dict(), {}, []
    for name, what in _NEW_PARTS.items():
        its = {k: v for k, v in own.items() if k.startswith(name)}
        if its and not any(k.startswith(name) for k in state_dict):
            new |= its
            news.append(f', and {what}')
    if not any(k.startswith(_FINAL_NORM) for k in own):
        its = {k for k in state_dict if k.startswith(_FINAL_NORM)}
        state_dict = {k: v for k, v in state_dict.items() if k not in its}
        left_over |= {k.split('.')[0] for k in its}
    check_fit(module, state_dict | new, path)
    module.load_state_dict(state_dict | new)
    module._is_init = True
    message = (
        f'{type(module).__name__}: all {len(state_dict)} keys loaded from '
        f'{path}'
    )
    message += ''.join(news)
    if left_over:
        message += f'; its {some(left_over)} left over'
    print_log(message, logger='current')
    return True
