"""Order and seeds of samples: worker counts, processes, resuming."""

import pickle
import random
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import TensorDataset

import vcmamba_mm.data.sampling as sampling
from vcmamba_mm.data import SeededSampler
from vcmamba_mm.data.sampling import SampleIndex

SAMPLERS = {
    'default': dict(type='DefaultSampler', shuffle=True),
    'in order': dict(type='DefaultSampler', shuffle=False),
    'infinite': dict(type='InfiniteSampler', shuffle=True),
    'repeated': dict(type='RepeatAugSampler', shuffle=True),
}


@pytest.fixture(params=SAMPLERS)
def cfg(request):
    if request.param == 'repeated':
        pytest.importorskip('mmpretrain.datasets')
        init_default_scope('mmpretrain')
    return SAMPLERS[request.param]


@pytest.fixture
def process(monkeypatch):
    """Pretend to be one of several processes."""

    def process(rank, world_size):
        info = (rank, world_size)
        modules = ['mmengine.dataset.sampler', sampling.__name__]
        try:
            import mmpretrain.datasets.samplers.repeat_aug as repeat_aug

            modules.append(repeat_aug.__name__)
        except ImportError:
            pass
        for module in modules:
            monkeypatch.setattr(f'{module}.get_dist_info', lambda: info)

    return process


def numbers(size):
    return TensorDataset(torch.arange(size))


def first(sampler, number=50):
    return list(islice(iter(sampler), number))


@pytest.mark.parametrize('rank, world_size', [(0, 1), (1, 3), (2, 3)])
def test_indices_are_the_samplers(cfg, process, rank, world_size):
    process(rank, world_size)
    data = numbers(37)
    for epoch in (0, 2):
        other = DATA_SAMPLERS.build(
            cfg, default_args=dict(dataset=data, seed=5)
        )
        sampler = SeededSampler(data, cfg, seed=5)
        for each in (other, sampler):
            each.set_epoch(epoch)
        assert len(sampler) == len(other)
        assert first(sampler) == first(other)


@pytest.mark.parametrize('rank, world_size', [(0, 1), (1, 3)])
@pytest.mark.parametrize('skipped', [0, 1, 11, 13])
def test_skipping(cfg, process, rank, world_size, skipped):
    """The rest of an epoch is what it would have been, seeds included."""
    process(rank, world_size)
    whole, rest = (SeededSampler(numbers(40), cfg, seed=3) for _ in range(2))
    for sampler in (whole, rest):
        sampler.set_epoch(4)
    rest.skip(skipped)
    expected = first(whole, 60)[skipped:]
    got = first(rest, 60 - skipped)
    assert got == expected
    assert [i.seed for i in got] == [i.seed for i in expected]
    if cfg['type'] != 'InfiniteSampler':  # the next epoch is whole again
        assert len(first(rest)) == len(whole)


def test_seeds_do_not_depend_on_the_processes(cfg, process):
    """A place in the epoch has one index and one seed, whoever takes it."""
    by_world_size = []
    for world_size in (1, 2, 4):
        seeds = {}
        for rank in range(world_size):
            process(rank, world_size)
            sampler = SeededSampler(numbers(24), cfg, seed=1)
            for index in first(sampler, 24 // world_size):
                assert index.seed not in seeds
                seeds[index.seed] = int(index)
        by_world_size.append(seeds)
    assert by_world_size[0] == by_world_size[1] == by_world_size[2]


def test_seeds_differ(cfg):
    seeds = []
    for run in (0, 1):
        sampler = SeededSampler(numbers(24), cfg, seed=run)
        for epoch in (0, 1, 2):
            if cfg['type'] == 'InfiniteSampler' and epoch:
                continue
            sampler.set_epoch(epoch)
            seeds += [index.seed for index in first(sampler)]
    assert len(set(seeds)) == len(seeds)


def test_copies_of_a_picture_have_seeds_of_their_own():
    pytest.importorskip('mmpretrain.datasets')
    init_default_scope('mmpretrain')
    sampler = SeededSampler(numbers(24), SAMPLERS['repeated'], seed=0)
    a, b, c, d = first(sampler, 4)
    assert a == b == c != d
    assert len({a.seed, b.seed, c.seed}) == 3


def test_index_pickles():
    index = pickle.loads(pickle.dumps(SampleIndex(7, (1, 2, 3))))
    assert index == 7 and index.seed == (1, 2, 3)


# ------------------------------------------------- what the transforms draw


@DATASETS.register_module()
class Draws(BaseDataset):
    """Samples that are what random generators gave, and who asked."""

    reads = 0

    def load_data_list(self):
        return [dict(number=i) for i in range(self.size)]

    def __init__(self, size=30, broken=(), **kwargs):
        self.size, self.broken = size, broken
        super().__init__(
            pipeline=[dict(type='SeedSample'), self.draw], **kwargs
        )

    def draw(self, results):
        type(self).reads += 1
        if results['number'] in self.broken:
            return None  # another takes its place
        return dict(
            index=results['sample_idx'],
            drawn=torch.tensor(
                [
                    random.random(),
                    np.random.rand(),
                    torch.rand(()).item(),
                ],
                dtype=torch.float64,
            ),
        )


def loader(cfg, workers=0, **kwargs):
    return Runner.build_dataloader(
        dict(
            dataset=dict(type='Draws', **kwargs),
            sampler=dict(type='SeededSampler', sampler=cfg),
            batch_size=4,
            num_workers=workers,
            collate_fn=dict(type='default_collate'),
        ),
        seed=9,
    )


def batches(loader, number=6):
    return [
        (batch['index'].tolist(), batch['drawn'].tolist())
        for batch in islice(loader, number)
    ]


def test_workers_change_nothing(cfg):
    kwargs = dict(broken=(3, 4, 20))
    expected = batches(loader(cfg, **kwargs))
    drawn = [tuple(d) for _, batch in expected for d in batch]
    assert len(set(drawn)) == len(drawn) == 24
    for workers in (1, 3):
        assert batches(loader(cfg, workers, **kwargs)) == expected


@pytest.mark.parametrize('workers', [0, 2])
def test_resuming_in_the_middle(cfg, workers):
    expected = batches(loader(cfg))
    resumed = loader(cfg, workers)
    resumed.sampler.skip(2 * 4)
    assert batches(resumed, 4) == expected[2:]


def test_without_seeds_nothing_is_seeded():
    draws = Draws()
    assert draws[3]['drawn'].tolist() != draws[3]['drawn'].tolist()


def test_the_iteration_loop_skips_without_reading():
    """MMEngine's loop calls ``skip`` when it resumes."""
    from mmengine.runner.loops import _InfiniteDataloaderIterator

    if not hasattr(InfiniteSampler, 'skip'):
        pytest.skip('this MMEngine reads what it skips')
    cfg = SAMPLERS['infinite']
    expected = batches(loader(cfg), 9)
    resumed = _InfiniteDataloaderIterator(loader(cfg))
    Draws.reads = 0
    resumed.skip_iter(7)
    assert batches(resumed, 2) == expected[7:]
    assert Draws.reads == 8


def test_negative_skip():
    sampler = SeededSampler(numbers(3), SAMPLERS['default'], seed=0)
    with pytest.raises(ValueError, match='must not be negative'):
        sampler.skip(-1)
