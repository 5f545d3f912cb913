"""Augmentation of batches against mmpretrain's of single pictures."""

from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip('mmpretrain')

from mmpretrain.datasets import transforms as stock
from mmpretrain.registry import MODELS
from test_fast_transforms import POLICIES, STOCK, scene, step

from vcmamba_mm.classification import (
    BatchRandAugment,
    BatchRandomErasing,
    batch_augment,
)

CONFIG = Config.fromfile(ROOT / 'configs/vcmamba_b_deviceaug_8xb128_in1k.py')
RAND_AUGMENT, ERASING = (
    {key: value for key, value in cfg.items() if key != 'type'}
    for cfg in CONFIG.data_preprocessor.augments
)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


def scenes(number, height=100, width=120):
    return np.stack([scene(height, width, seed) for seed in range(number)])


def to_batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def one_by_one(transform, images, seed=0):
    """What mmpretrain makes of the pictures, and what NumPy draws next."""
    np.random.seed(seed)
    changed = [transform(dict(img=image.copy()))['img'] for image in images]
    return np.stack(changed), np.random.random()


def at_once(augment, images, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    changed = augment(to_batch(images)).permute(0, 2, 3, 1).numpy()
    return changed, np.random.random()


def only(policy, **kwargs):
    """RandAugment of one operation, done for certain, of any magnitude."""
    drawn = ('magnitude_level', 'magnitude_std', 'total_level')
    policy = {key: policy[key] for key in policy if key not in drawn}
    return dict(
        policies=[policy | dict(prob=1.0) | kwargs],
        num_policies=1,
        magnitude_level=10,
        magnitude_std='inf',
    )


# ------------------------------------------------------------- RandAugment


@pytest.mark.parametrize(
    'policy',
    POLICIES,
    ids=[p['type'] + p.get('direction', '') for p in POLICIES],
)
def test_operations(policy):
    cfg = only(policy)
    images = scenes(24)
    images[3] = np.where(images[3] > 128, 150, 60)  # of few colours
    images[4] = 77
    images[5, ..., 0] = 9  # one channel has one value
    expected, drawn = one_by_one(stock.RandAugment(**cfg), images)
    got, drawn_here = at_once(BatchRandAugment(**cfg), images)
    assert got.dtype == np.uint8
    assert drawn_here == drawn
    assert (expected != images).mean() > 0.05
    difference = np.abs(got.astype(int) - expected)
    if policy['type'] in ('ColorTransform', 'Sharpness'):  # rounding
        assert difference.max() <= 1 and difference.mean() < 0.1
    elif 'pad_val' in policy:
        assert difference.max() <= 6 and difference.mean() < 0.15
    else:  # a table
        assert not difference.any()


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear'])
@pytest.mark.parametrize('name', ['Rotate', 'Shear', 'Translate'])
def test_other_interpolations_and_borders(name, interpolation):
    (policy, *_) = [p for p in POLICIES if p['type'] == name]
    cfg = only(policy, interpolation=interpolation, pad_val=(9, 0, 200))
    images = scenes(8)
    expected, _ = one_by_one(stock.RandAugment(**cfg), images)
    got, _ = at_once(BatchRandAugment(**cfg), images)
    assert np.abs(got.astype(int) - expected).mean() < 0.3


def test_magnitudes_that_are_given():
    fixed = [
        dict(type='Rotate', angle=20, center=(10.0, 20.0), scale=1.2),
        dict(type='Shear', magnitude=0.2, direction='vertical'),
        dict(type='Translate', magnitude=1.5),  # nothing is left
        dict(type='Brightness', magnitude=0.5),
        dict(type='Contrast', magnitude=0.5),
    ]
    images = scenes(4)
    for policy in fixed:
        # mmcv rotates with one number into a border of that blue.
        hparams = dict(pad_val=(3, 60, 200), interpolation='bicubic')
        cfg = only(policy) | dict(hparams=hparams)
        expected, _ = one_by_one(stock.RandAugment(**cfg), images)
        got, _ = at_once(BatchRandAugment(**cfg), images)
        assert np.abs(got.astype(int) - expected).mean() < 0.1, policy
        assert (expected != images).any((1, 2, 3)).all(), policy


def test_policy_of_the_config():
    """Every picture gets what it would have got alone."""
    images = scenes(48)
    augment = step(STOCK, 'RandAugment')
    expected, drawn = one_by_one(augment, images, seed=5)
    got, drawn_here = at_once(BatchRandAugment(**RAND_AUGMENT), images, seed=5)
    assert drawn_here == drawn
    difference = np.abs(got.astype(int) - expected)
    # What was rounding becomes a step in Posterize, Solarize and Equalize.
    assert difference.mean((1, 2, 3)).max() < 1
    assert np.median(difference) == 0
    # with either round disabled, one of two
    unchanged = (got == images).all((1, 2, 3)).sum()
    assert stats.binomtest(int(unchanged), 48, 1 / 4).pvalue > 1e-4


def test_what_is_drawn(monkeypatch):
    """Two of 15 operations, each with probability 1/2, magnitude N(9, 0.5)."""
    augment = BatchRandAugment(**RAND_AUGMENT)
    ops = augment.policy.transforms
    applied, angles = [], []

    def note(op, images, drawn):
        assert len(images) == len(drawn)
        applied.extend([ops.index(op)] * len(drawn))
        if isinstance(op, stock.Rotate):
            angles.extend(drawn)
        return images

    def note_tables(*args):
        return note(*args)

    tables = batch_augment._from_tables
    monkeypatch.setattr(
        batch_augment,
        '_OPERATIONS',
        {
            kind: note_tables if operation is tables else note
            for kind, operation in batch_augment._OPERATIONS.items()
        },
    )
    monkeypatch.setattr(batch_augment, '_from_tables', note_tables)
    np.random.seed(1)
    augment(torch.zeros(12000, 3, 1, 1, dtype=torch.uint8))
    counts = np.bincount(applied, minlength=15)
    assert stats.binomtest(len(applied), 24000, 0.5).pvalue > 1e-4
    assert stats.chisquare(counts).pvalue > 1e-4
    angles = np.array(angles)
    signs = stats.binomtest(int((angles < 0).sum()), len(angles), 0.5)
    assert signs.pvalue > 1e-4
    levels = np.abs(angles) / 3  # 30 degrees are level 10, and the most
    cut = stats.truncnorm(-18, 2, loc=9, scale=0.5)
    assert stats.kstest(levels[levels < 9.999], cut.cdf).pvalue > 1e-4
    largest = stats.binomtest(
        int((levels > 9.999).sum()), len(levels), stats.norm(9, 0.5).sf(10)
    )
    assert largest.pvalue > 1e-4


def test_pictures_do_not_depend_on_each_other():
    images = scenes(1).repeat(16, 0)
    augment = BatchRandAugment(**RAND_AUGMENT)
    for one in (augment, BatchRandomErasing(**ERASING | dict(erase_prob=1.0))):
        changed, _ = at_once(one, images)
        assert (images == images[0]).all()  # those given stay as they are
        different = [(a != b).any() for a, b in combinations(changed, 2)]
        # of 15 * 15 pairs of operations, each done or not
        assert np.mean(different) > 0.8
    # What others look like does not change what one becomes.
    others = images.copy()
    others[:8] = 255 - others[:8]
    got, expected = (at_once(augment, batch)[0] for batch in (others, images))
    assert np.array_equal(got[8:], expected[8:])


# ------------------------------------------------------------ random erasing


def test_boxes_are_those_of_mmpretrain(monkeypatch):
    def fill(self, image, top, left, height, width):
        image[top : top + height, left : left + width] = 0
        return image

    monkeypatch.setattr(stock.RandomErasing, '_fill_pixels', fill)
    images = np.full((200, 60, 80, 3), 255, np.uint8)
    expected, drawn = one_by_one(stock.RandomErasing(**ERASING), images)
    black = BatchRandomErasing(**ERASING | dict(fill_color=0, fill_std=0))
    got, drawn_here = at_once(black, images)
    assert drawn_here == drawn
    assert np.array_equal(got, expected)


def test_how_many_and_how_large():
    """A quarter of the pictures, area uniform in 2 to 33 %."""
    images = torch.full((2000, 3, 100, 100), 255, dtype=torch.uint8)
    black = BatchRandomErasing(**ERASING | dict(fill_color=0, fill_std=0))
    np.random.seed(2)
    areas = (black(images)[:, 0] == 0).float().mean((1, 2)).numpy()
    areas = areas[areas > 0]
    assert stats.binomtest(len(areas), 2000, 0.25).pvalue > 1e-4
    uniform = stats.uniform(0.02, 1 / 3 - 0.02)
    assert stats.kstest(areas, uniform.cdf).pvalue > 1e-4


def test_noise_is_normal():
    """Rounded down and limited to 0 to 255; drawn pixel by pixel."""
    area = dict(
        min_area_ratio=1.0, max_area_ratio=1.0, aspect_range=(1.0, 1.0)
    )
    erase = BatchRandomErasing(**ERASING | area | dict(erase_prob=1.0))
    torch.manual_seed(0)
    noise = erase(torch.zeros(4, 3, 224, 224, dtype=torch.uint8)).numpy()
    for channel in range(3):
        normal = stats.norm(
            ERASING['fill_color'][channel], ERASING['fill_std'][channel]
        )
        pixels = noise[:, channel].ravel()
        expected = np.diff([0, *normal.cdf(np.arange(1, 256)), 1])
        counts = np.bincount(pixels, minlength=256)
        assert stats.chisquare(counts, expected * pixels.size).pvalue > 1e-4
    between = np.corrcoef(noise.reshape(12, -1))[np.triu_indices(12, 1)]
    assert np.abs(between).max() < 0.02
    values = noise - noise.mean((2, 3), keepdims=True)
    for neighbours in (values[..., 1:], values[:, :, 1:]):
        height, width = neighbours.shape[2:]
        pair = (neighbours, values[:, :, :height, :width])
        assert abs(np.corrcoef(*(x.ravel() for x in pair))[0, 1]) < 0.01


# ---------------------------------------------------------- the preprocessor


def preprocessors():
    """The config's and, without augmentation, mmpretrain's."""
    cfg = dict(CONFIG.data_preprocessor)
    augmenting = MODELS.build(cfg)
    cfg.pop('augments')
    return augmenting, MODELS.build(cfg | dict(type='ClsDataPreprocessor'))


def test_in_training_only():
    augmenting, plain = preprocessors()
    data = dict(inputs=to_batch(scenes(16)))
    expected = plain(data)['inputs']
    assert torch.equal(augmenting(data)['inputs'], expected)
    seeds = [1, 1, 2]
    outputs = []
    for seed in seeds:
        np.random.seed(seed)
        torch.manual_seed(seed)
        outputs.append(augmenting(data, training=True)['inputs'])
    first, again, other = outputs
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    np.random.seed(1)
    torch.manual_seed(1)
    images = BatchRandAugment(**RAND_AUGMENT)(data['inputs'])
    images = BatchRandomErasing(**ERASING)(images)
    assert torch.equal(first, plain(dict(inputs=images))['inputs'])


def test_mixed_precision_changes_nothing():
    """The optimizer wrapper's context is around the preprocessor too."""
    images = scenes(8)
    for policy in POLICIES:
        augment = BatchRandAugment(**only(policy))
        expected, _ = at_once(augment, images)
        with torch.autocast('cpu', torch.bfloat16):
            got, _ = at_once(augment, images)
        assert np.array_equal(got, expected), policy['type']


def test_all_of_it_is_on_the_device():
    """Tensors without memory tell if one is elsewhere, or is waited for."""
    policies = [p for cfg in POLICIES for p in only(cfg)['policies']]
    augment = BatchRandAugment(**RAND_AUGMENT | dict(policies=policies))
    erase = BatchRandomErasing(**ERASING | dict(erase_prob=1.0))
    with FakeTensorMode():
        # PyTorch 2.4 asks for a driver to index a fake CUDA tensor.
        images = torch.empty(128, 3, 32, 32, dtype=torch.uint8, device='meta')
        changed = erase(augment(images))
    assert changed.is_meta and changed.dtype == torch.uint8
    assert changed.shape == images.shape


@pytest.mark.parametrize(
    'images, error',
    [
        (torch.zeros(2, 3, 8, 8), 'uint8 .* got torch.float32'),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r'got .* \(2, 1, 8, 8\)'),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], 'default_collate'),
    ],
    ids=['float', 'gray', 'list'],
)
def test_wrong_pictures(images, error):
    augmenting, _ = preprocessors()
    with pytest.raises((TypeError, ValueError), match=error):
        augmenting(dict(inputs=images), training=True)


def test_what_cannot_be_done_to_batches():
    cutout = dict(type='Cutout', magnitude_range=(0, 40))
    with pytest.raises(ValueError, match='Cutout cannot .* AutoContrast, '):
        BatchRandAugment(policies=[cutout], num_policies=1, magnitude_level=9)
    for wrong in (dict(mode='const'), dict(fill_std=None)):
        with pytest.raises(ValueError, match="mode='rand' and fill_std"):
            BatchRandomErasing(**ERASING | wrong)
