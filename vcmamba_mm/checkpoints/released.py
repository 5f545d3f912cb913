"""Weights under the names that the authors of a family gave them."""

import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from .reading import CheckpointError, StateDict, some

Weight = tuple[str, Tensor]


class ReleasedNames(NamedTuple):
    """One family's released weights, and those of our classifiers.

    Attributes:
        family: What the family is called.
        prefixes: What some of the released keys begin with, and none of ours
            or of other networks.
        to_ours: Gives a released weight, key and tensor, our key and shape.
        to_released: The other way.
        not_read: What some keys of other models of these authors begin with,
            and what those are.

    Both functions raise ``KeyError`` or ``ValueError`` for a key that is none
    of them, or a tensor that cannot be its.
    """

    family: str
    prefixes: tuple[str, ...]
    to_ours: Callable[[str, Tensor], Weight]
    to_released: Callable[[str, Tensor], Weight]
    not_read: dict[str, str] = {}


def replace_prefix(key: str, names: Iterable[tuple[str, str]], to: int) -> str:
    """Swap the prefix of a key.

    Args:
        key: Name of a weight.
        names: Prefixes (ours, released), of which the first that fits counts.
            One without a dot at its end is a whole key.
        to: 0 for ours, 1 for the released one.

    Raises:
        KeyError: If none fits.
    """
    for pair in names:
        old, new = pair[1 - to], pair[to]
        if key == old or (old.endswith('.') and key.startswith(old)):
            return new + key[len(old) :]
    raise KeyError(key)


def _pattern(template: str) -> re.Pattern:
    """What a key with a template's beginning looks like."""
    numbers = re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>\\d+)', re.escape(template))
    return re.compile(f'{numbers}(?P<rest>.*)')


class NameTables:
    """How one family's authors name the layers.

    All names are prefixes (ours, released), as ``replace_prefix`` takes them.

    Args:
        model: Names outside the stages.
        block: Names in a block.
        block_place: What the released names begin with in a block, with
            ``{stage}`` and ``{block}``; without the latter there is one in
            each stage.
        downsample: Names in a downsampling.
        downsample_place: What the released names begin with there.
        period: By how much the released number grows from stage to stage; the
            downsampling before a stage has the number before that of the
            stage.
        others: Names in other numbered modules, and what begins them, ours and
            the released, with ``{stage}`` for the number.
    """

    _OURS_BLOCK = 'backbone.stages.{stage}.blocks.{block}.'
    _OURS_DOWNSAMPLE = 'backbone.stages.{stage}.downsample.'

    def __init__(
        self,
        model: Iterable[tuple[str, str]],
        block: Iterable[tuple[str, str]],
        block_place: str,
        downsample: Iterable[tuple[str, str]] = (),
        downsample_place: str = '',
        period: int = 1,
        others: Iterable[tuple[Iterable[tuple[str, str]], str, str]] = (),
    ):
        self.model = model
        # names, places (ours, released), released number of stage 0
        self.parts = [(block, (self._OURS_BLOCK, block_place), 0)]
        if downsample:
            places = self._OURS_DOWNSAMPLE, downsample_place
            self.parts.append((downsample, places, -1))
        self.parts += [(names, places, 0) for names, *places in others]
        self.period = period

    def _rename(self, key: str, to: int) -> str:
        for names, places, offset in self.parts:
            match = _pattern(places[1 - to]).fullmatch(key)
            if match is None:
                continue
            number = int(match['stage'])
            if to == 1:
                number = self.period * number + offset
            else:
                number, rest = divmod(number - offset, self.period)
                if rest:
                    continue
            place = places[to].format(
                stage=number, block=match.groupdict().get('block', 0)
            )
            return place + replace_prefix(match['rest'], names, to)
        return replace_prefix(key, self.model, to)

    def to_ours(self, key: str) -> str:
        """Our name of a released one; ``KeyError`` if it is none."""
        return self._rename(key, 0)

    def to_released(self, key: str) -> str:
        """The released name of ours; ``KeyError`` if it has none."""
        return self._rename(key, 1)


# Parts of segmenters and detectors, whose names are MMSegmentation's and
# MMDetection's.
OTHER_PARTS = (
    *('neck.', 'decode_head.', 'auxiliary_head.', 'rpn_head.', 'roi_head.'),
    *('bbox_head.', 'mask_head.'),
)


def in_other_models(
    names: ReleasedNames,
    out_norm: str = 'outnorm',
    parts: tuple[str, ...] = OTHER_PARTS,
) -> ReleasedNames:
    """The names of a family's backbones in segmenters and detectors.

    Args:
        names: Of its classifiers, or of the backbone alone.
        out_norm: What the norm of output 0 is called there, without the 0.
        parts: What begins the names that are as we have them; the others
            begin with ``backbone.``.
    """
    prefix, out_norms = 'backbone.', ('backbone.out_norms.', out_norm)

    def to_ours(key: str, value: Tensor) -> Weight:
        if key.startswith(parts):
            return key, value
        if not key.startswith(prefix):
            raise KeyError(key)
        key = key.removeprefix(prefix)
        if key.startswith(out_norms[1]):
            return out_norms[0] + key.removeprefix(out_norms[1]), value
        key, value = names.to_ours(key, value)
        if not key.startswith(prefix):  # a classifier's
            raise KeyError(key)
        return key, value

    def to_released(key: str, value: Tensor) -> Weight:
        if key.startswith(parts):
            return key, value
        if not key.startswith(prefix):
            raise KeyError(key)
        if key.startswith(out_norms[0]):
            key = out_norms[1] + key.removeprefix(out_norms[0])
        else:
            key, value = names.to_released(key, value)
        return prefix + key, value

    prefixes = tuple(prefix + its for its in names.prefixes)
    return ReleasedNames(names.family, prefixes, to_ours, to_released)


_FAMILIES: list[ReleasedNames] = []


def register(names: ReleasedNames) -> None:
    """Let checkpoints with these names be read."""
    _FAMILIES.append(names)


def is_released(state_dict: StateDict) -> bool:
    """Whether the keys are those of a release."""
    prefixes = tuple(
        p for names in _FAMILIES for p in (*names.prefixes, *names.not_read)
    )
    return any(key.startswith(prefixes) for key in state_dict)


def _rename(
    state_dict: StateDict,
    source: str | os.PathLike | None,
    direction: str,
    kind: str,
) -> StateDict:
    """As the family that knows most of the keys."""
    results = []
    for names in _FAMILIES:
        rename, renamed, unknown = getattr(names, direction), {}, []
        for key, value in state_dict.items():
            try:
                its_key, its_value = rename(key, value)
                renamed[its_key] = its_value
            except (KeyError, ValueError):
                unknown.append(key)
        if renamed.keys() == state_dict.keys():
            unknown = list(state_dict)  # another model's heads alone
        if not unknown:
            return renamed
        results.append((len(unknown), names.family, unknown))
    where = '' if source is None else f'checkpoint {source}: '
    for names in _FAMILIES:
        for prefix, what in names.not_read.items():
            if any(key.startswith(prefix) for key in state_dict):
                raise CheckpointError(
                    f'{where}it holds {what}, which there is no backbone for'
                )
    count, family, unknown = min(results)
    raise CheckpointError(
        f'{where}{count} of {len(state_dict)} keys are not those of a {kind} '
        f'{family}: {some(unknown)}'
    )


def from_released(
    state_dict: StateDict, source: str | os.PathLike | None = None
) -> StateDict:
    """Give a released state dict our names and shapes.

    Args:
        state_dict: With the released names.
        source: Where it came from, for the message.

    Raises:
        CheckpointError: If some are those of no family.
    """
    return _rename(state_dict, source, 'to_ours', 'released')


def to_released(
    state_dict: StateDict, source: str | os.PathLike | None = None
) -> StateDict:
    """The inverse of ``from_released``."""
    return _rename(state_dict, source, 'to_released', 'vcmamba_mm')
