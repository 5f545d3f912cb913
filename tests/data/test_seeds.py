"""Seeds come through data sets that wrap others, or it is said."""

import pickle
import random
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import ConcatDataset as TorchConcat
from torch.utils.data import DataLoader, Dataset, Subset

from vcmamba_mm.data import SeededSampler
from vcmamba_mm.data.sampling import SeedError

BATCH = 4


def draw(results):
    """What each of the three random generators gives."""
    drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
    return dict(number=results['number'], drawn=drawn)


def lose_the_broken(results):
    return None if results.get('broken') else results


@DATASETS.register_module(force=True)
class Numbers(BaseDataset):
    """Numbers from ``first`` on; another sample stands in for ``broken``."""

    def __init__(
        self, size=20, first=0, seed=True, broken=(), reading=None, at=''
    ):
        self.size, self.first, self.broken, self.at = size, first, broken, at
        steps = [dict(type='SeedSample')] if seed else []
        steps += [reading] if reading else [lose_the_broken]
        super().__init__(pipeline=[*steps, draw])

    def load_data_list(self):
        return [
            dict(
                number=self.first + i,
                broken=i in self.broken,
                img_path=f'{self.at}/{i}.png',
            )
            for i in range(self.size)
        ]

    def get_cat_ids(self, idx):
        return [int(idx % 4 == 0)]


class OfAList(Dataset):
    """Somebody's own, which looks indices up."""

    def __init__(self, dataset, order):
        self.dataset, self.order = dataset, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        return self.dataset[self.order[index]]


@TRANSFORMS.register_module(force=True)
class MixOneIn:
    """As mosaics: what other sample is random, and a sample too."""

    def get_indices(self, dataset):
        return random.randrange(len(dataset))

    def __call__(self, results):
        (other,) = results['mix_results']
        return dict(results, other=other['number'], others=other['drawn'])


def balanced(**kwargs):
    return ClassBalancedDataset(Numbers(**kwargs), oversample_thr=0.9)


def nested(**kwargs):
    parts = [
        dict(type='Numbers', size=9, **kwargs),
        dict(type='RepeatDataset', times=2, dataset=dict(type='Numbers')),
    ]
    joined = dict(type='ConcatDataset', datasets=parts)
    return Subset(RepeatDataset(joined, times=2), range(3, 60))


def folds(**kwargs):
    pytest.importorskip('mmpretrain.datasets')
    from mmpretrain.datasets import KFoldDataset

    cfg = dict(type='Numbers', size=40, **kwargs)
    return KFoldDataset(cfg, fold=1, num_splits=2, seed=0)


def mixed(**kwargs):
    pytest.importorskip('mmseg.datasets')
    from mmseg.datasets import MultiImageMixDataset

    return MultiImageMixDataset(
        dict(type='Numbers', **kwargs), [dict(type='MixOneIn')]
    )


WRAPPERS = {
    'none': Numbers,
    'RepeatDataset': lambda **k: RepeatDataset(Numbers(**k), times=2),
    'ClassBalancedDataset': balanced,
    'ConcatDataset': lambda **k: ConcatDataset(
        [Numbers(8, **k), Numbers(20, 8, **k)]
    ),
    'Subset': lambda **k: Subset(Numbers(**k), range(19, 1, -1)),
    'ConcatDataset of PyTorch': lambda **k: TorchConcat(
        [Numbers(8, **k), Numbers(20, 8, **k)]
    ),
    'own': lambda **k: OfAList(Numbers(**k), range(19, -1, -1)),
    'nested': nested,
    'KFoldDataset': folds,
    'MultiImageMixDataset': mixed,
}


@pytest.fixture(params=WRAPPERS)
def wrapped(request):
    return WRAPPERS[request.param]


def loader(dataset, workers=0, **kwargs):
    """One of MMEngine's runner, but that the data set is built."""
    sampler = SeededSampler(
        dataset, dict(type='DefaultSampler', shuffle=True), seed=9
    )
    return DataLoader(
        dataset,
        BATCH,
        sampler=sampler,
        num_workers=workers,
        collate_fn=list,
        **kwargs,
    )


def samples(loader, epoch=0, number=16):
    loader.sampler.set_epoch(epoch)
    batches = list(islice(loader, number // BATCH))
    return [sample for batch in batches for sample in batch]


def draws(samples):
    return [sample['drawn'] for sample in samples]


def test_what_is_drawn_is_of_the_place(wrapped):
    """Each place draws the same numbers, whatever sample comes there."""
    there = draws(samples(loader(Numbers())))
    dataset = wrapped()
    for epoch in (0, 1):
        here = samples(loader(dataset), epoch)
        assert (draws(here) == there) == (epoch == 0)
        assert len({tuple(drawn) for drawn in draws(here)}) == len(here) == 16
    # By hand it is as it was.
    assert dataset[0]['drawn'] != dataset[0]['drawn']


BROKEN = dict(broken=(2, 5, 7))


def test_pickling_changes_nothing(wrapped):
    """As where workers are not forked."""
    here = loader(wrapped(**BROKEN))
    there = pickle.loads(pickle.dumps(here.dataset))
    batch = list(islice(here.sampler, 16))
    assert here.dataset.__getitems__(batch) == there.__getitems__(batch)


@pytest.mark.parametrize(
    'wrapper, workers, persistent',
    [
        ('RepeatDataset', 1, False),
        ('nested', 2, False),
        ('KFoldDataset', 1, False),
        ('MultiImageMixDataset', 2, True),
    ],
)
def test_workers_change_nothing(wrapper, workers, persistent):
    expected, theirs = (
        loader(WRAPPERS[wrapper](**BROKEN), **kwargs)
        for kwargs in (
            {},
            dict(workers=workers, persistent_workers=persistent),
        )
    )
    for epoch in (0, 1):
        assert samples(theirs, epoch) == samples(expected, epoch)


def test_the_rest_of_an_epoch(wrapped):
    expected = samples(loader(wrapped()))
    resumed = loader(wrapped())
    resumed.sampler.skip(8)
    assert samples(resumed, number=8) == expected[8:]


@pytest.mark.parametrize(
    'runner, options',
    # Where only some batches make an epoch there is one more wrapper.
    [(Runner, dict(num_batch_per_epoch=4)), (FlexibleRunner, {})],
)
def test_stock_runners(runner, options):
    parts = dict(
        type='RepeatDataset', times=2, dataset=dict(type='Numbers', size=10)
    )
    cfg = dict(
        dataset=parts,
        sampler=dict(
            type='SeededSampler',
            sampler=dict(type='DefaultSampler', shuffle=True),
        ),
        batch_size=BATCH,
        num_workers=0,
        collate_fn=dict(type=list),
        **options,
    )
    theirs = runner.build_dataloader(cfg, seed=9)
    assert draws(samples(theirs)) == draws(samples(loader(Numbers())))


def test_what_stands_in_for_the_unreadable(tmp_path):
    """Which it is, and what it draws, do not depend on the workers."""
    reading = dict(
        type='ReplaceUnreadable',
        transform=dict(type='LoadImageStrict'),
        max_rate=0.9,
    )
    picture = cv2.imencode('.png', np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    for i in range(20):
        content = picture if i % 4 else picture[:30]
        (tmp_path / f'{i}.png').write_bytes(content)

    def read(workers):
        dataset = RepeatDataset(Numbers(reading=reading, at=tmp_path), 2)
        return samples(loader(dataset, workers))

    expected = read(0)
    assert all(sample['number'] % 4 for sample in expected)
    there = samples(loader(RepeatDataset(Numbers(), 2)))
    for sample, readable in zip(expected, there):
        stands_in = readable['number'] % 4 == 0
        assert (sample == readable) == (not stands_in)
    assert read(2) == expected


# ------------------------------------------------------------ failing loudly


@pytest.mark.parametrize('workers', [0, 1])
def test_a_part_without_seed_sample(workers):
    dataset = ConcatDataset([Numbers(), Numbers(20, seed=False)])
    with pytest.raises(SeedError, match="put dict.type='SeedSample'. first"):
        samples(loader(dataset, workers))
    # What nobody took is not the next one's.
    assert dataset[0]['drawn'] != dataset[0]['drawn']


def test_an_error_leaves_no_seed_behind():
    def fail(results):
        raise OSError

    dataset = Numbers()
    dataset.pipeline.transforms.insert(0, fail)
    with pytest.raises(OSError):
        samples(loader(dataset))
    del dataset.pipeline.transforms[0]
    assert dataset[0]['drawn'] != dataset[0]['drawn']


def test_a_loader_without_batches():
    dataset = Numbers()
    sampler = SeededSampler(dataset, dict(type='DefaultSampler'), seed=0)
    with pytest.raises(SeedError, match='batch_size other than None'):
        next(iter(DataLoader(dataset, None, sampler=sampler)))


def test_a_data_set_that_takes_no_attributes():
    with pytest.raises(TypeError, match='type range, which takes no attr'):
        SeededSampler(range(8), dict(type='DefaultSampler'), seed=0)


def test_another_loader_of_the_same_data_set():
    """It is not seeded, and does not disturb."""
    dataset = RepeatDataset(Numbers(), 2)
    seeded = loader(dataset)
    expected = samples(seeded)
    plain = DataLoader(dataset, BATCH, collate_fn=list)
    theirs = [iter(plain), iter(plain)]
    ours = []
    for batch in islice(seeded, 4):
        ours += batch
        first, second = map(next, theirs)
        assert [s['number'] for s in first] == [s['number'] for s in second]
        assert draws(first) != draws(second)
    assert ours == expected
