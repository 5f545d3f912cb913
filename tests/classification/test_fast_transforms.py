"""The fast transforms against mmpretrain's: draws, pictures, distributions."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy import stats

pytest.importorskip('mmpretrain')

from mmpretrain.registry import TRANSFORMS

import vcmamba_mm.classification  # noqa: F401
from vcmamba_mm.classification import transforms as fast_module
from vcmamba_mm.data.reading import ImageReadError

BASE = ROOT / 'configs/_base_/datasets'
FAST = Config.fromfile(BASE / 'imagenet_bs128_224.py').train_pipeline
STOCK = Config.fromfile(BASE / 'imagenet_bs128_224_stock.py').train_pipeline


def build(cfgs):
    init_default_scope('mmpretrain')
    return [TRANSFORMS.build(cfg) for cfg in cfgs]


def step(cfgs, name):
    (cfg,) = [cfg for cfg in cfgs if cfg['type'] == name]
    return build([cfg])[0]


def scene(height=224, width=224, seed=0):
    """A smooth picture with edges and some noise, BGR."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (7, 9, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (width // 2, height // 3), height // 4, (9, 200, 80), -1)
    noise = rng.integers(-4, 5, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """JPEGs smaller and larger than the crop, one a PNG in disguise."""
    folder = tmp_path_factory.mktemp('pictures')
    sizes = [(150, 200), (300, 400), (500, 375), (301, 640), (224, 224)]
    for i, size in enumerate(sizes):
        cv2.imwrite(str(folder / f'{i}.jpg'), scene(*size, seed=i))
    png = cv2.imencode('.png', scene(230, 260, seed=9))[1].tobytes()
    (folder / '5.jpg').write_bytes(png)
    return [str(folder / f'{i}.jpg') for i in range(6)]


def run(transforms, path, seed):
    np.random.seed(seed)
    results = dict(img_path=path, sample_idx=0, gt_label=3)
    for transform in transforms:
        results = transform(results)
    state = np.random.get_state()
    return results, (state[1].tobytes(), state[2])


@pytest.mark.parametrize('seed', range(12))
def test_same_draws_and_pictures_up_to_erasing(pictures, seed):
    """The generator ends in the same state: nothing else was drawn."""
    stock, fast = build(STOCK[:5]), build(FAST[:4])
    for path in pictures:
        expected, drawn_there = run(stock, path, seed)
        got, drawn_here = run(fast, path, seed)
        assert drawn_here == drawn_there
        assert got['img_shape'] == expected['img_shape']
        assert got['ori_shape'] == expected['ori_shape']
        assert got['flip'] == expected['flip']
        assert got['img'].dtype == np.uint8
        difference = np.abs(got['img'].astype(int) - expected['img'])
        # Posterize, Solarize and Equalize make steps of what was rounding.
        assert difference.mean() < 3
        assert np.median(difference) == 0


def test_resizing_is_pillows(pictures):
    stock, fast = build(STOCK[:3]), build(FAST[:2])
    differences = []
    for seed in range(10):
        for path in pictures:
            expected, _ = run(stock, path, seed)
            got, _ = run(fast, path, seed)
            differences.append(
                np.abs(got['img'].astype(int) - expected['img'])
            )
    # Pillow rounds between its two passes, PyTorch too, in another order.
    assert np.mean(differences) < 0.1
    assert (np.array(differences) <= 1).mean() > 0.999


POLICIES = [dict(p) for p in step(STOCK, 'RandAugment').policies]


@pytest.mark.parametrize(
    'policy',
    POLICIES,
    ids=[p['type'] + p.get('direction', '') for p in POLICIES],
)
def test_operations(policy):
    """Each of RandAugment's operations, applied for certain."""
    rand = dict(
        type='RandAugment',
        num_policies=1,
        magnitude_level=9,
        magnitude_std=0.5,
    )
    rand['policies'] = [
        {k: v for k, v in policy.items() if not k.startswith('magnitude_l')}
        | dict(prob=1.0)
    ]
    rand['policies'][0].pop('magnitude_std', None)
    rand['policies'][0].pop('total_level', None)
    stock, fast = build([rand, rand | dict(type='FastRandAugment')])
    for seed in range(8):
        # other than square, and of few colours
        image = scene(60 + 9 * seed, 80, seed) if seed % 4 else scene()
        if seed == 3:
            image = (image > 128).astype(np.uint8) * 90 + 60
        if seed == 6:
            image[...] = 77
        expected, drawn_there = run_op(stock, image, seed)
        got, drawn_here = run_op(fast, image, seed)
        assert drawn_here == drawn_there
        assert got.flags.c_contiguous and got.shape == image.shape
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= 6 and difference.mean() < 0.15
        if 'pad_val' not in policy:  # no interpolation: exact
            assert difference.max() <= 1 and difference.mean() < 1e-3


def run_op(transform, image, seed):
    np.random.seed(seed)
    out = transform(dict(img=image.copy()))['img']
    state = np.random.get_state()
    return out, (state[1].tobytes(), state[2])


@pytest.mark.parametrize('offset', [-1.5, -0.999, 0.0, 0.37, 1.0, 2.0])
@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_far_translations(offset, direction):
    cfg = dict(
        type='Translate',
        magnitude=offset,
        prob=1.0,
        random_negative_prob=0.0,
        interpolation='bicubic',
        pad_val=7,
        direction=direction,
    )
    (op,) = build([cfg])
    image = scene(40, 50)
    got = fast_module._translate(op, image)
    expected = op(dict(img=image))['img']
    assert np.abs(got.astype(int) - expected).max() <= 6


@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_no_vector_for_a_kernel(direction, monkeypatch):
    """OpenCV 4 takes a vector for a column, OpenCV 5 for a row."""
    shapes = []
    filter2d = cv2.filter2D

    def recorded(source, depth, kernel, **kwargs):
        shapes.append(kernel.shape)
        return filter2d(source, depth, kernel, **kwargs)

    monkeypatch.setattr(cv2, 'filter2D', recorded)
    (op,) = build(
        [dict(type='Translate', magnitude=0.3, prob=1.0, direction=direction)]
    )
    fast_module._translate(op, scene(40, 50))
    assert shapes == [(1, 4) if direction == 'horizontal' else (4, 1)]


def test_operations_of_others():
    cfg = dict(num_policies=2, magnitude_level=9)
    cfg['policies'] = [dict(type='ColorJitter', brightness=0.4)]
    stock, fast = build(
        [cfg | dict(type=t) for t in ('RandAugment', 'FastRandAugment')]
    )
    torch.manual_seed(0)
    expected, _ = run_op(stock, scene(), 0)
    torch.manual_seed(0)
    assert np.array_equal(run_op(fast, scene(), 0)[0], expected)


def test_other_interpolations_are_mmpretrains():
    cfg = dict(STOCK[4]) | dict(hparams=dict(interpolation='nearest'))
    stock, fast = build([cfg, cfg | dict(type='FastRandAugment')])
    for seed in range(30):
        expected, _ = run_op(stock, scene(), seed)
        assert np.abs(run_op(fast, scene(), seed)[0] - expected).max() <= 1


# ------------------------------------------------------------ random erasing


def test_erased_regions_are_the_same():
    stock = step(STOCK, 'RandomErasing')
    fast = step(FAST, 'FastRandomErasing')
    image = np.full((224, 224, 3), 255, np.uint8)
    erased = 0
    for seed in range(60):
        expected = run_op(stock, image, seed)[0]
        got = run_op(fast, image, seed)[0]
        for one, other in ((got, expected), (expected, got)):
            # noise is 255 in few places, never in all of a row or column
            assert np.array_equal(
                (one != 255).any((0, 2)), (other != 255).any((0, 2))
            )
            assert np.array_equal(
                (one != 255).any((1, 2)), (other != 255).any((1, 2))
            )
        erased += (got != 255).any()
    assert 6 <= erased <= 26  # a quarter of 60


@pytest.mark.parametrize('which', ['stock', 'fast'])
def test_noise_is_normal(which):
    """Rounded down and limited to 0 to 255, both of them."""
    transform = step(
        *dict(
            stock=(STOCK, 'RandomErasing'), fast=(FAST, 'FastRandomErasing')
        )[which]
    )
    np.random.seed(3)
    image = np.zeros((800, 1000, 3), np.uint8)
    pixels = transform._fill_pixels(image, 0, 0, 800, 1000).reshape(-1, 3)
    for channel in range(3):
        mean, std = transform.fill_color[channel], transform.fill_std[channel]
        edges = np.arange(1, 256)  # values v with v <= x < v + 1
        below = stats.norm(mean, std).cdf(edges)
        expected = np.diff([0, *below, 1]) * len(pixels)
        counts = np.bincount(pixels[:, channel], minlength=256)
        assert stats.chisquare(counts, expected).pvalue > 1e-4
        # Rounding up would make it half a step more; 0.06 is its deviation.
        difference = pixels[:, channel].mean() - expected @ range(256) / 8e5
        assert abs(difference) < 0.25
    # the colours are drawn one by one, and so are neighbours
    correlation = np.corrcoef(pixels.T)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 0.01
    assert abs(np.corrcoef(pixels[1:, 0], pixels[:-1, 0])[0, 1]) < 0.01


def test_noise_follows_the_seed():
    (erase,) = build([dict(FAST[4], erase_prob=1.0)])
    image = scene()
    first, again, other = (run_op(erase, image, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    np.random.seed(2)
    region = erase._fill_pixels(image.copy(), 0, 0, 20, 20)[:20, :20]
    np.random.seed(3)
    assert (region != erase._fill_pixels(image, 0, 0, 20, 20)[:20, :20]).any()
    assert not np.array_equal(first, other)


def test_erasing_with_one_colour():
    cfg = dict(erase_prob=1.0, mode='const', fill_color=(1, 2, 3))
    stock, fast = build(
        [cfg | dict(type=t) for t in ('RandomErasing', 'FastRandomErasing')]
    )
    assert np.array_equal(
        run_op(stock, scene(), 0)[0], run_op(fast, scene(), 0)[0]
    )


# ------------------------------------------- distributions, by closed formulas


def test_crops():
    """Area uniform in 8 to 100 %, log of the ratio uniform in 3:4 to 4:3."""
    crop = step([FAST[1]['transform']], 'LoadRandomResizedCrop')
    picture = type('Picture', (), dict(shape=(4000, 4000)))
    np.random.seed(0)
    boxes = np.array([crop.rand_crop_params(picture) for _ in range(4000)])
    _, _, height, width = boxes.T
    # Large crops fit less often, and are drawn again: up to 3/4 all fit.
    area = height * width / 4000**2
    area, ratio = area[area < 0.7], (width / height)[area < 0.7]
    assert stats.kstest(area, stats.uniform(0.08, 0.62).cdf).pvalue > 1e-4
    low, high = math.log(3 / 4), math.log(4 / 3)
    log_ratio = stats.uniform(low, high - low)
    assert stats.kstest(np.log(ratio), log_ratio.cdf).pvalue > 1e-4


def recorded(op, name, note):
    """A method that tells what it returns."""
    method = getattr(op, name)

    def call():
        value = method()
        note(op, value)
        return value

    return call


def test_rand_augment(monkeypatch):
    """Two of 15 operations, each with probability 1/2, magnitude N(9, 0.5)."""
    augment = step(FAST, 'FastRandAugment')
    assert len(augment.transforms) == 15
    applied, levels = [], []

    def note_use(op, disabled):
        if not disabled:
            applied.append(augment.transforms.index(op))

    def note_level(op, value):
        low, high = op.magnitude_range
        levels.append((value - low) / (high - low) * 10)

    for op in augment.transforms:
        for name, note in (
            ('random_disable', note_use),
            ('random_magnitude', note_level),
        ):
            monkeypatch.setitem(vars(op), name, recorded(op, name, note))
    np.random.seed(1)
    image = np.zeros((8, 8, 3), np.uint8)
    for _ in range(6000):
        augment(dict(img=image))
    # 6000 * 2 * 1/2 in all, a fifteenth each
    counts = np.bincount(applied, minlength=15)
    assert stats.binomtest(len(applied), 12000, 0.5).pvalue > 1e-4
    assert stats.chisquare(counts).pvalue > 1e-4
    levels = np.array(levels)
    inside = levels[levels < 10]
    cut = stats.truncnorm(-18, 2, loc=9, scale=0.5)
    assert stats.kstest(inside, cut.cdf).pvalue > 1e-4
    at_most = stats.norm(9, 0.5).sf(10)
    assert (
        stats.binomtest(int((levels == 10).sum()), len(levels), at_most).pvalue
        > 1e-4
    )


def test_pixel_statistics(pictures):
    """Mean and spread of the pixels, over draws that are not the same."""
    stock, fast = build(STOCK), build(FAST)
    moments = []
    for transforms, first in ((stock, 0), (fast, 10_000)):
        values = [
            run(transforms, path, first + seed)[0]['inputs'].float()
            for seed in range(60)
            for path in pictures[:3]
        ]
        moments.append([(v.mean().item(), v.std().item()) for v in values])
    for one, other in zip(zip(*moments[0]), zip(*moments[1])):
        assert stats.ks_2samp(one, other).pvalue > 1e-3


# ------------------------------------------------------------------ the rest


def test_packing():
    stock, fast = build([dict(type='PackInputs'), dict(type='FastPackInputs')])
    results = dict(img=scene(30, 40), gt_label=5, img_path='x', flip=True)
    expected, got = stock(dict(results)), fast(dict(results))
    assert torch.equal(got['inputs'], expected['inputs'])
    assert got['inputs'].is_contiguous()
    assert got['data_samples'].to_dict() == expected['data_samples'].to_dict()
    for image in (scene(30, 40).astype(np.float32), scene()[..., 0]):
        one, other = stock(dict(img=image)), fast(dict(img=image))
        assert torch.equal(one['inputs'], other['inputs'])


def test_unreadable_pictures(tmp_path, pictures):
    (load,) = build([dict(type='LoadRandomResizedCrop', scale=32)])
    for name, content in (
        ('empty.jpg', b''),
        ('text.jpg', b'not a picture'),
        ('cut.jpg', Path(pictures[1]).read_bytes()[:3000]),
    ):
        (tmp_path / name).write_bytes(content)
    for name in ('empty.jpg', 'text.jpg', 'cut.jpg', 'none.jpg'):
        with pytest.raises(ImageReadError, match=f'{name} cannot be read'):
            load(dict(img_path=str(tmp_path / name)))


def test_wrong_interpolation():
    with pytest.raises(ValueError, match="'bicubic' or 'bilinear'"):
        fast_module.LoadRandomResizedCrop(32, interpolation='area')
