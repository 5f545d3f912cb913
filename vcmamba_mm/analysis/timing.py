"""Timing that can be trusted: contestants take turns.

One process; contestants take turns in random order, over several rounds,
after a warm-up, on inputs that rotate; each of them is timed twice, as two
entries, and a difference that is not larger than the one between two entries
is noise.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random

import torch

BUFFERS = 3  # sets of inputs that rotate
FULL = dict(rounds=7, warm_ups=10, sample_seconds=0.05)
QUICK = dict(rounds=2, warm_ups=1, sample_seconds=0.0)
SLOW_SECONDS, SLOW_WARM_UPS = 1.0, 3

Call = Callable[[int], object]  # of a buffer's number


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call of one contestant.

    Attributes:
        entries_ms: A sample of each round, for both entries.
        calls_per_sample: Over how many calls a sample is the mean.
        warm_ups: Calls before the first sample.
    """

    entries_ms: tuple[list[float], list[float]]
    calls_per_sample: int
    warm_ups: int

    @property
    def medians(self) -> tuple[float, float]:
        return tuple(statistics.median(entry) for entry in self.entries_ms)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of both entries together."""
        first, second = self.entries_ms
        return tuple(statistics.quantiles(first + second))

    @property
    def median(self) -> float:
        return self.quartiles[1]

    @property
    def spread(self) -> float:
        """Difference between two entries of the same thing."""
        return abs(self.medians[0] - self.medians[1])

    def times_faster_than(self, other: 'Timing') -> float:
        return other.median / self.median

    def equals(self, other: 'Timing') -> bool:
        """Whether the difference is noise."""
        return abs(self.median - other.median) <= max(
            self.spread, other.spread
        )

    def as_dict(self) -> dict:
        return dict(
            asdict(self), quartiles_ms=self.quartiles, spread_ms=self.spread
        )

    def __str__(self) -> str:
        first, second, low, high = map(
            digits, (*self.medians, *self.quartiles[::2])
        )
        return f'{first}, {second} ({low}\u2013{high})'


def digits(value: float) -> str:
    """Three significant digits, and all of those before the point."""
    return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f}'


def _seconds(call: Call, buffers: list[int], device: str) -> float:
    """Time of one call after the other, one for each of ``buffers``."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for i in buffers:
            call(i)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    for i in buffers:
        call(i)
    return time.perf_counter() - begin


def time_side_by_side(
    calls: dict[str, Call],
    device: str,
    rounds: int,
    warm_ups: int,
    sample_seconds: float,
) -> dict[str, Timing]:
    """Time contestants against each other.

    Args:
        calls: The contestants, functions of a buffer's number.
        device: 'cpu' or 'cuda'.
        rounds: Samples of each entry.
        warm_ups: Calls before; ``SLOW_WARM_UPS`` are enough for one that
            takes longer than ``SLOW_SECONDS``.
        sample_seconds: A sample takes at least as long, with more calls than
            one if need be.
    """
    rotation = itertools.cycle(range(BUFFERS))

    def seconds(name: str, number: int) -> float:
        buffers = list(itertools.islice(rotation, number))
        return _seconds(calls[name], buffers, device)

    warmed, repeats = {}, {}
    for name in calls:
        durations = []
        while len(durations) < warm_ups and not (
            len(durations) >= SLOW_WARM_UPS and durations[-1] > SLOW_SECONDS
        ):
            durations.append(seconds(name, 1))
        warmed[name] = len(durations)
        repeats[name] = max(1, math.ceil(sample_seconds / min(durations)))

    samples = {name: ([], []) for name in calls}
    turns = [(name, entry) for name in calls for entry in range(2)]
    random = Random(0)
    for _ in range(rounds):
        random.shuffle(turns)
        for name, entry in turns:
            taken = seconds(name, repeats[name]) / repeats[name]
            samples[name][entry].append(1000 * taken)
    return {
        name: Timing(samples[name], repeats[name], warmed[name])
        for name in calls
    }


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        '| ' + ' | '.join(line) + ' |'
        for line in (header, ['---'] * len(header), *rows)
    ]
