"""What errors of PyTorch and MMEngine mean in a config, in one line."""

import difflib
import re
import traceback
from pathlib import Path
from typing import NamedTuple

from mmengine.evaluator import BaseMetric
from mmengine.registry import Registry
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# What a wrong config, path or checkpoint raises while things are set up
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


class SettingError(ValueError):
    """A setting of the config that cannot be, in the key it names."""


def _text(error: Exception) -> str:
    """What an error says, or if it says nothing its type, in one line."""
    # str() puts the text of a KeyError into quotes.
    quoted = isinstance(error, KeyError) and error.args
    text = str(error.args[0] if quoted else error)
    if 'Original Traceback' in text:  # from a worker of a data loader
        text = text.strip().splitlines()[-1].split(': ', 1)[-1]
    if not text:
        text = type(error).__name__
        last = traceback.extract_tb(error.__traceback__)[-1:]
        if last and last[0].line.startswith('assert '):
            file = Path(last[0].filename).name
            text = f'{file} {last[0].line.replace("assert", "asserts", 1)}'
    return ' '.join(text.split())


# What the messages lack that begin like this.
_REMEDIES = {
    'end should be larger than begin': 'a part of the schedule without end '
    'ends with the run',
    r'Failed to get [\w.]+$': 'there is nothing of this name; look at its '
    'spelling and at what is before the dot',
    'only one of size and size_divisor': 'of model.data_preprocessor',
    r'Target \d+ is out of bounds': 'this class is none of num_classes of a '
    'head, or of an auxiliary head',
    'Found 0 files in subfolders': 'in each class there has to be an image',
    'stack expects each tensor to be equal size': 'the images of a batch '
    'need one size. Let the pipeline of a classifier resize or crop them to '
    "it; a segmenter's model.data_preprocessor.size has to be its crop_size",
    'The image size in a batch should be the same': 'set batch_size=1 where '
    'images are tested in sizes of their own',
}


class _Call(NamedTuple):
    """A method that an error came through, and its variables."""

    self: object
    local: dict


def _unregistered(
    error: Exception, text: str, calls: list[_Call]
) -> str | None:
    """A type that no registry has, with those of similar names."""
    found = re.match(r'(\S+) is not in the \S+::.+? registry', text)
    registries = [
        call.local['registry']
        for call in calls
        if isinstance(call.local.get('registry'), Registry)
    ]
    if not (found and registries):
        return None
    registry = root = registries[-1]
    while root.parent is not None:
        root = root.parent
    names = {*registry.module_dict, *root.module_dict}
    # Alike, or cut short.
    near = difflib.get_close_matches(found[1], sorted(names)) or [
        name for name in sorted(names) if found[1] in name
    ]
    if near:
        return f'{found[0]}: did you mean {" or ".join(near[:3])}?'
    return (
        f'{found[0]}: look at its spelling, at its scope (such as mmseg. in '
        'front of it) and at custom_imports'
    )


_ABOUT_SHAPES = re.compile('channel|shape|size|dim|running_mean')


def _channels(layer: nn.Module, x: Tensor) -> tuple[int, int] | None:
    """How many channels a layer wants, and how many its input has."""
    if isinstance(layer, _ConvNd) and x.dim() == layer.weight.dim():
        return layer.in_channels, x.shape[1]
    if isinstance(layer, _NormBase):
        return layer.num_features, x.shape[1]
    if isinstance(layer, nn.Linear):
        return layer.in_features, x.shape[-1]
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1], x.shape[-1]
    return None


def _model(error: Exception, text: str, calls: list[_Call]) -> str | None:
    """Parts of a model that do not fit what comes before them."""
    calls = [
        call
        for call in calls
        # not while it is made
        if isinstance(call.self, nn.Module) and '_modules' in vars(call.self)
    ]
    if not calls:
        return None
    part, local = calls[-1].self, calls[-1].local
    names = {part: name for name, part in calls[0].self.named_modules()}
    name = names.get(part, '').removeprefix('module.')  # of DDP
    key = f'model.{name.partition(".")[0]}'
    if text.startswith('Expected more than 1 value per channel'):
        return (
            f'{name} normalizes each channel over the batch and has but one '
            'value of it: set a larger batch_size, or drop_last=True if only '
            'the last batch is small (both in train_dataloader), or a '
            "norm_cfg of type='GN' with num_groups, or train with several "
            'processes and SyncBN'
        )
    x, maps = local.get('input'), local.get('inputs')
    if isinstance(x, Tensor) and _ABOUT_SHAPES.search(text):
        channels = _channels(part, x)
        if channels and channels[0] != channels[1]:
            return (
                f'{name} is built for {channels[0]} channels and gets '
                f'{channels[1]}: see in_channels of {key}'
            )
    if isinstance(maps, (list, tuple)):
        if isinstance(error, IndexError) and hasattr(part, 'in_index'):
            wanted = f'in_index={part.in_index}'
        elif isinstance(error, AssertionError) and hasattr(
            part, 'in_channels'
        ):
            wanted = f'in_channels={part.in_channels}'
        else:
            return None
        return (
            f'{key} has {wanted} and gets {len(maps)} feature maps: see '
            'out_indices of model.backbone'
        )
    return None


def _metric(error: Exception, text: str, calls: list[_Call]) -> str | None:
    """Metrics of another task, or that there are not."""
    for its, local in calls:
        name = type(its).__name__
        if isinstance(its, BaseMetric) and isinstance(error, KeyError):
            sample = local.get('data_sample')
            if sample is not None and text not in sample:
                return (
                    f'{name} wants {text!r}, which this model does not '
                    'predict: is it the metric of this task?'
                )
            if text.endswith('is not supported'):
                return f'{name}: {text}'
    return None


def meaning(error: Exception) -> str | None:
    """What an error means, if it is one that a wrong setting is known for."""
    text = _text(error)
    for pattern, remedy in _REMEDIES.items():
        if re.match(pattern, text):
            return f'{text}: {remedy}'
    calls = [
        _Call(frame.f_locals.get('self'), frame.f_locals)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    for explain in (_unregistered, _model, _metric):
        explained = explain(error, text, calls)
        if explained:
            return explained
    return None


def message(error: Exception) -> str:
    """What an error says, or what that means, in one line."""
    return meaning(error) or _text(error)
