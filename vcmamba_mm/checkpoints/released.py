"""Weights under the names that the authors of a family gave them."""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .reading import CheckpointError, StateDict, some


class ReleasedNames(NamedTuple):
    """The names of one family's released weights, and ours of classifiers.

    Attributes:
        family: What the family is called.
        prefixes: What some of the released keys begin with, and none of ours
            or of other networks.
        to_ours: Renames a released key.
        to_released: Renames one of ours.

    Both raise ``KeyError`` or ``ValueError`` for a key that is none of them.
    """

    family: str
    prefixes: tuple[str, ...]
    to_ours: Callable[[str], str]
    to_released: Callable[[str], str]


_FAMILIES: list[ReleasedNames] = []


def register(names: ReleasedNames) -> None:
    """Let checkpoints with these names be read."""
    _FAMILIES.append(names)


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


def is_released(state_dict: StateDict) -> bool:
    """Whether the keys are those of a release."""
    prefixes = tuple(p for names in _FAMILIES for p in names.prefixes)
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
                renamed[rename(key)] = value
            except (KeyError, ValueError):
                unknown.append(key)
        if not unknown:
            return renamed
        results.append((len(unknown), names.family, unknown))
    count, family, unknown = min(results)
    where = '' if source is None else f'checkpoint {source}: '
    raise CheckpointError(
        f'{where}{count} of {len(state_dict)} keys are not those of a {kind} '
        f'{family} classifier: {some(unknown)}'
    )


def from_released(
    state_dict: StateDict, source: str | os.PathLike | None = None
) -> StateDict:
    """Rename the keys of a released state dict to a classifier's of ours.

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
