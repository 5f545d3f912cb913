"""The order of the samples, and a seed for each."""

from collections.abc import Iterator, Sized
from itertools import islice

from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


class SampleIndex(int):
    """The index of a sample, and the seed of what is random about it.

    Attributes:
        seed: Different for every sample of every epoch, and for each copy of
            the same picture.
    """

    def __new__(cls, index: int, seed: tuple[int, ...]) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Give every sample of another sampler a seed of its own.

    The seed is made of the run's seed, the epoch, and the place of the sample
    in the epoch over all the processes. ``SeedSample``, first in the
    pipeline, applies it. The indices are the other sampler's.

    Args:
        dataset: The data set.
        sampler: Config of the other sampler.
        seed: The run's seed.
    """

    def __init__(
        self, dataset: Sized, sampler: dict, seed: int | None = None
    ) -> None:
        self.dataset = dataset  # for mmdet's batch samplers
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
