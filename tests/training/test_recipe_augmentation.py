"""What the recipe does to pictures and labels, as test_recipe.py."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from PIL import Image
from recipe_configs import CLASSIFIERS, SEGMENTERS, load

from vcmamba_mm.training.runner import SafeRunner

pytest.importorskip('mmpretrain')
import vcmamba_mm.classification  # noqa: F401

# ------------------------------------------------------ repeated augmentation


def draw(rank, root, out):
    """Write down the pictures that a process of three gets."""
    meeting = f'file://{out}/meeting'
    dist.init_process_group('gloo', meeting, rank=rank, world_size=3)
    cfg = load(CLASSIFIERS[0]).train_dataloader
    cfg.batch_size = 3
    cfg.num_workers = 2
    cfg.dataset.data_root = str(root)
    cfg.dataset.metainfo = dict(classes=('0', '1'))
    loader = SafeRunner.build_dataloader(cfg, seed=0)
    loader.sampler.set_epoch(1)
    pictures, samples = [], []
    for batch in loader:
        pictures.append(batch['inputs'])
        samples += [s.img_path for s in batch['data_samples']]
    np.savez(
        f'{out}/{rank}.npz',
        pictures=torch.cat(pictures).numpy(),
        samples=samples,
    )


def test_repeated_augmentation(tmp_path):
    """Three processes get the same pictures, each augmented differently."""
    root = tmp_path / 'imagenet'
    rng = np.random.default_rng(0)
    for i in range(18):
        path = root / f'train/{i % 2}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    fork = multiprocessing.get_context('fork')  # packages are there
    processes = [
        fork.Process(target=draw, args=(rank, root, tmp_path))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    drawn = [np.load(tmp_path / f'{rank}.npz') for rank in range(3)]
    names = [list(d['samples']) for d in drawn]
    # A third of the pictures, three times, makes an epoch.
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == len(names[0]) == 18 // 3
    copies = [d['pictures'] for d in drawn]
    for picture in zip(*copies):
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert (picture[first] != picture[second]).mean() > 0.5


# ------------------------------------------------- Mixup, CutMix, the labels


def test_mixup_or_cutmix():
    """One of them in every batch, each as often; labels by the same share.

    Mixup's weight is of Beta(0.8, 0.8). CutMix's rectangle has the area
    r^2 of Beta(1, 1) around any pixel, of which (r - r^2 / 4)^2 is inside on
    average.
    """
    from mmpretrain.models.utils import RandomBatchAugment

    augment = RandomBatchAugment(load(CLASSIFIERS[0]).model.train_cfg.augments)
    own = {type(a).__name__: [] for a in augment.augments}
    # Picture k is k everywhere, its label k.
    numbers = torch.arange(8.0)
    inputs = numbers[:, None, None, None].expand(8, 1, 64, 64)
    chosen = []
    for i, single in enumerate(augment.augments):

        def traced(*args, single=single):
            chosen.append(type(single).__name__)
            return single(*args)

        augment.augments[i] = traced
    np.random.seed(0)
    draws = 4000
    for _ in range(draws):
        mixed, scores = augment(inputs.clone(), torch.eye(8))
        assert torch.allclose(scores.sum(1), torch.ones(8))
        assert torch.allclose(mixed.mean((1, 2, 3)), scores @ numbers)
        own[chosen[-1]].append(scores.diagonal().min().item())
    assert len(chosen) == draws
    # five standard deviations, here and below
    assert abs(len(own['Mixup']) - draws / 2) < 5 * draws**0.5 / 2
    assert np.mean(own['Mixup']) == pytest.approx(0.5, abs=0.035)
    assert np.var(own['Mixup']) == pytest.approx(1 / (4 * 2.6), rel=0.1)
    inside = 1 / 2 - 1 / 5 + 1 / 48
    assert np.mean(own['CutMix']) == pytest.approx(1 - inside, abs=0.03)


@pytest.mark.parametrize('name', [CLASSIFIERS[0], CLASSIFIERS[1]])
def test_labels_are_smoothed_once(name):
    """On the way from the loader's labels to the loss."""
    cfg = load(name)
    preprocessor = MODELS.build(
        dict(
            type='ClsDataPreprocessor',
            **cfg.data_preprocessor,
            batch_augments=cfg.model.train_cfg,
        )
    )
    from mmpretrain.structures import DataSample

    batch = dict(
        inputs=torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(i) for i in (0, 1, 5, 999)],
    )
    np.random.seed(3)
    mixed = preprocessor(batch, training=True)['data_samples']
    scores = torch.stack([sample.gt_score for sample in mixed])
    assert (scores > 0).sum() > 4  # mixed, and nothing else in them
    assert (scores > 0).sum(1).max() == 2
    head = MODELS.build(cfg.model.head)
    logits = torch.randn(4, 1000)
    expected = -((0.9 * scores + 0.1 / 1000) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(
        head._get_loss(logits, mixed)['loss'], expected.mean()
    )


# --------------------------------------------------------------- augmentation


def steps(pipeline):
    """The transforms by the name of what they do."""
    found = {}
    for step in pipeline:
        inner = step.get('transform', step)
        for one in inner if isinstance(inner, list) else [inner]:
            name = one.type.removeprefix('Load').removeprefix('Fast')
            found[name] = one
    return found


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_augmentation_of_classifiers(name):
    found = steps(load(name).train_dataloader.dataset.pipeline)
    crop = found['RandomResizedCrop']
    assert crop.scale == 224
    assert crop.get('interpolation', 'bicubic') == 'bicubic'
    assert found['RandomFlip'].prob == 0.5
    augment = found['RandAugment']
    assert augment.policies == 'timm_increasing'
    assert (augment.num_policies, augment.magnitude_std) == (2, 0.5)
    assert (augment.magnitude_level, augment.total_level) == (9, 10)
    erasing = found['RandomErasing']
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')


@pytest.mark.parametrize('name', SEGMENTERS)
def test_segmentation_model_and_augmentation(name):
    cfg = load(name)
    backbone, neck, head = (
        cfg.model[part] for part in ('backbone', 'neck', 'decode_head')
    )
    assert backbone.out_indices == (0, 1, 2, 3)
    assert backbone.drop_path_rate == 0.2
    assert (neck.out_channels, neck.num_outs) == (256, 4)
    assert 'norm_cfg' not in neck
    assert (head.channels, head.dropout_ratio) == (128, 0.1)
    assert list(head.feature_strides) == [4, 8, 16, 32]
    for part in (backbone, head):
        assert part.norm_cfg.type == 'SyncBN'
    found = steps(cfg.train_dataloader.dataset.pipeline)
    resize = found['RandomResize']
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert found['RandomCrop'].crop_size == (512, 512)
    assert found['RandomFlip'].prob == 0.5
    assert 'PhotoMetricDistortion' in found
    assert found['MaskStrict'].reduce_zero_label
