"""The order of the samples, and a seed for each."""

import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from itertools import islice

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, TRANSFORMS
from torch.utils.data import Sampler


class SeedError(ValueError):
    """A seed that does not reach its sample."""


class SampleIndex(int):
    """The index of a sample, and the seed of what is random about it.

    Attributes:
        seed: Different for every sample of every epoch, and for each copy of
            the same image.
    """

    def __new__(cls, index: int, seed: tuple[int, ...]) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed)


# Of the sample that is being made, until a SeedSample takes it.
_offered: ContextVar[tuple[int, ...] | None] = ContextVar('seed', default=None)


@contextmanager
def offer_seed(seed: tuple[int, ...]) -> Iterator[None]:
    """Let the first ``SeedSample`` that is called within take a seed.

    Raises:
        SeedError: If there was none.
    """
    token = _offered.set(seed)
    try:
        yield
        if _offered.get() is not None:
            raise SeedError(
                'SeededSampler gave a sample a seed that nothing took: put '
                "dict(type='SeedSample') first into the pipeline, of every "
                'part of the data set, or use the sampler within it alone'
            )
    finally:
        _offered.reset(token)


class SeededFetch:
    """What PyTorch's loader calls for a batch, in place of ``dataset[i]``.

    An index does not come through data sets that wrap others, which compute
    new ones. So each seed is offered to the sample by another way.

    Args:
        dataset: The outermost data set.
    """

    def __init__(self, dataset: Sized) -> None:
        self.dataset = dataset

    def __call__(self, indices: Sequence[int]) -> list:
        return [self._fetch(index) for index in indices]

    def _fetch(self, index: int) -> object:
        if not isinstance(index, SampleIndex):  # of another loader
            return self.dataset[index]
        with offer_seed(index.seed):
            return self.dataset[int(index)]


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Give every sample of another sampler a seed of its own.

    The seed is made of the run's seed, the epoch, and the place of the sample
    in the epoch over all the processes. ``SeedSample``, first in the
    pipeline, applies it; the data set may be one that wraps others. The
    indices are the other sampler's.

    Args:
        dataset: The data set that the loader is given. It gets an attribute
            ``__getitems__``, which PyTorch's loader fetches batches with.
        sampler: Config of the other sampler.
        seed: The run's seed.

    Raises:
        TypeError: If the data set takes no attributes.
    """

    def __init__(
        self, dataset: Sized, sampler: dict, seed: int | None = None
    ) -> None:
        self.dataset = dataset  # for mmdet's batch samplers
        try:
            dataset.__getitems__ = SeededFetch(dataset)
        except AttributeError as error:
            raise TypeError(
                'SeededSampler cannot give seeds to a data set of type '
                f'{type(dataset).__name__}, which takes no attributes: write '
                'a class for it'
            ) from error
        self.seed = sync_random_seed() if seed is None else seed
        self.sampler = DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=self.seed)
        )
        self.rank, self.world_size = get_dist_info()
        self.epoch = 0
        self._start = 0

    def __iter__(self) -> Iterator[SampleIndex]:
        start, self._start = self._start, 0
        epoch = self.epoch
        indices = islice(iter(self.sampler), start, None)
        for place, index in enumerate(indices, start):
            place = self.rank + self.world_size * place
            yield SampleIndex(index, (self.seed, epoch, place))

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def skip(self, num_samples: int) -> None:
        """Let the next epoch begin after its first samples of this process.

        Nothing is read of them. MMEngine's ``IterBasedTrainLoop`` calls this
        when a run is resumed.
        """
        if num_samples < 0:
            raise ValueError(
                f'num_samples must not be negative, got {num_samples}'
            )
        self._start = num_samples


@TRANSFORMS.register_module()
class SeedSample(BaseTransform):
    """Seed Python, NumPy and PyTorch for the transforms that follow.

    The seed is what ``SeededSampler`` gave the sample, so the result does not
    depend on the worker, on how many there are, or on where a run was resumed.
    Where several are called for a sample (images that are mixed into it, or
    stand in for it), the first one seeds, and the others let it go on. With
    other samplers nothing is seeded.

    Raises:
        SeedError: If the loader has no batches (``batch_size=None``).
    """

    def transform(self, results: dict) -> dict:
        if isinstance(results.get('sample_idx'), SampleIndex):
            raise SeedError(
                'SeededSampler needs a loader with batches: give it a '
                'batch_size other than None'
            )
        seed = _offered.get()
        if seed is not None:
            _offered.set(None)
            digest = blake2b(repr(seed).encode(), digest_size=8).digest()
            number = int.from_bytes(digest, 'little')
            random.seed(number)
            np.random.seed(number % 2**32)
            # torch.manual_seed would queue something for the GPU every time.
            torch.default_generator.manual_seed(number)
        return results
