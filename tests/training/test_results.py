"""What tools/test.py writes of each picture: one file for one picture."""

import runpy
import shutil
from types import SimpleNamespace

import mmengine
import numpy as np
import pytest
import torch
from conftest import CONFIGS, GOLDEN, ROOT
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmengine.visualization import Visualizer
from PIL import Image
from torch.utils.data import Subset

from vcmamba_mm.training.results import (
    PaintHook,
    SaveMasksHook,
    pictures_of,
    result_names,
)

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

COLOUR = 80, 50, 50  # of class 3 of ADE20K, the floor
NAMES = [f'{place}/000{i}' for place in ('north', 'south') for i in (1, 2)]
PNGS = [f'{name}.png' for name in NAMES]


class Pictures(BaseDataset):
    """Of some paths below ``prefix``."""

    def __init__(self, prefix, *names):
        self.names = names
        super().__init__(data_prefix=dict(img_path=prefix))

    def load_data_list(self):
        folder = self.data_prefix['img_path']
        return [
            dict(img_path=name if name[0] == '/' else f'{folder}/{name}')
            for name in self.names
        ]


def names(dataset):
    return list(result_names(pictures_of(dataset)).values())


def test_names_are_relative_to_the_prefix():
    assert names(Pictures('data/val', 'a/1.jpg', 'a/2.JPEG')) == [
        'a/1.png',
        'a/2.png',
    ]
    archived = Pictures('tar://data/shards/val', 'a/1.x.jpg')
    assert names(archived) == ['a/1.x.png']
    assert names(Subset(archived, [0])) == ['a/1.x.png']
    assert names(Pictures('../val/', './1')) == ['1.png']


def test_names_that_would_be_the_same():
    data = Pictures('val', 'a/1.jpg', 'a/1.png', 'a/2.png', 'b/1.jpg')
    assert names(data) == ['a/1.jpg.png', 'a/1.png.png', 'a/2.png', 'b/1.png']


def test_names_that_would_be_the_same_with_both_endings():
    data = Pictures('val', 'a.jpg', 'a.png', 'a.jpg.png', 'b.jpg')
    assert names(data) == [
        'a.jpg.png',
        'a.png.png',
        'a.jpg.png.png',
        'b.jpg.png',
    ]


def test_names_of_several_parts():
    parts = Pictures('/data/a/val', '1.jpg'), Pictures('/data/b/val', '1.jpg')
    assert names(ConcatDataset(parts)) == ['a/val/1.png', 'b/val/1.png']
    outside = Pictures('/data/val', '1.jpg', '/data/other/1.jpg')
    assert names(outside) == ['val/1.png', 'other/1.png']
    mixed = [Pictures('tar://x/val', '1.jpg'), Pictures('/x/val', '1.jpg')]
    assert names(ConcatDataset(mixed)) == ['tar/x/val/1.png', 'x/val/1.png']


# --------------------------------------------------------------- in testing


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """Pictures of the same names in two folders, and masks of class 3."""
    root = tmp_path_factory.mktemp('places')
    mask = np.full((64, 96), 4, np.uint8)  # ADE20K's files begin with 1
    for i, name in enumerate(NAMES):
        for kind in ('images', 'annotations'):
            (root / kind / 'validation' / name).parent.mkdir(
                parents=True, exist_ok=True
            )
        picture = np.full((64, 96, 3), (200, 100, 20 * i), np.uint8)
        turned = Image.Exif()
        turned[0x0112] = 6  # Orientation: readers turn it by 90 degrees
        Image.fromarray(picture).save(
            root / f'images/validation/{name}.jpg', quality=98, exif=turned
        )
        Image.fromarray(mask).save(root / f'annotations/validation/{name}.png')
    return root


@pytest.fixture(scope='module')
def segmenter_file(tmp_path_factory):
    """A segmenter that sees class 3 everywhere."""
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(CONFIGS / 'tiny_segmenter.py').model)
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data[3] = 1
    path = tmp_path_factory.mktemp('segmenter') / 'iter_1.pth'
    torch.save(model.state_dict(), path)
    return path


def written(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file()
    )


def test_segmenter(places, segmenter_file, run_here, tmp_path):
    output = run_here(
        'test.py',
        CONFIGS / 'tiny_segmenter.py',
        segmenter_file,
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'masks',
        '--show-dir',
        tmp_path / 'painted',
        '--cfg-options',
        f'test_dataloader.dataset.data_root={places}',
        'test_dataloader.dataset.pipeline.0.color_type='
        'color_ignore_orientation',
        'test_dataloader.dataset.pipeline.1.scale=(96,64)',
    )
    assert 'aAcc: 100.0' in output
    assert written(tmp_path / 'masks') == PNGS
    assert written(tmp_path / 'painted') == PNGS
    for i, name in enumerate(PNGS):
        mask = np.asarray(Image.open(tmp_path / 'masks' / name))
        assert mask.dtype == np.uint8 and mask.shape == (64, 96)
        assert (mask == 4).all()
        painted = np.asarray(Image.open(tmp_path / 'painted' / name))
        # of 64 x 96, so that text can be read; the truth, what was seen
        assert painted.shape == (360, 2 * 540, 3)
        # 80 % of class 3's colour (mmseg's default), 20 % of the picture
        expected = 0.8 * np.array(COLOUR) + 0.2 * np.array([200, 100, 20 * i])
        assert np.abs(np.median(painted, (0, 1)) - expected).max() < 2


def test_classifier(pictures, run_here, tmp_path):
    """Twenty pictures, of which always ten have the same name."""
    root = tmp_path / 'data'
    for path in (pictures / 'val').rglob('*.jpg'):
        number = path.stem[-1]
        target = root / 'val' / path.parent.name / f'{number}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    output = run_here(
        'test.py',
        CONFIGS / 'tiny_classifier.py',
        GOLDEN / 'tiny_release.pth',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'predictions.pkl',
        '--show-dir',
        tmp_path / 'painted',
        '--cfg-options',
        f'test_dataloader.dataset.data_root={root}',
        'visualizer=None',  # MMEngine's own, which paints no classes
    )
    assert 'accuracy/top1' in output
    expected = [f'{k}/{i}' for k in range(10) for i in (0, 1)]
    assert written(tmp_path / 'painted') == [f'{x}.png' for x in expected]
    predictions = mmengine.load(tmp_path / 'predictions.pkl')
    assert [p['img_path'] for p in predictions] == [
        f'{root}/val/{x}.jpg' for x in expected
    ]
    first = Image.open(tmp_path / 'painted/0/0.png')
    assert first.size == (432, 360)  # of 48 x 40
    original = Image.open(root / 'val/0/0.jpg')
    original = original.resize(first.size, Image.BILINEAR)
    below = [np.asarray(i)[220:].astype(int) for i in (first, original)]
    assert np.abs(below[0] - below[1]).mean() < 2  # RGB
    assert np.abs(below[0] - below[1][..., ::-1]).mean() > 10


@pytest.mark.parametrize(
    'visualizer',
    [
        None,
        dict(type='Visualizer', vis_backends=[]),
        dict(type='mmengine.Visualizer'),
        dict(type=Visualizer),
    ],
)
def test_what_paints_is_of_the_scope(visualizer):
    prepare = runpy.run_path(str(ROOT / 'tools/test.py'))['paint_predictions']
    for scope, kind in (
        ('mmpretrain', 'UniversalVisualizer'),
        ('mmseg', 'SegLocalVisualizer'),
        ('mmdet', 'DetLocalVisualizer'),
    ):
        cfg = Config(dict(default_scope=scope, visualizer=visualizer))
        prepare(cfg, 'out')
        assert cfg.visualizer == dict(visualizer or {}, type=kind)
    cfg.visualizer = dict(type='Own')
    prepare(cfg, 'out')
    assert cfg.visualizer == dict(type='Own')
    cfg = Config(dict(visualizer=visualizer))
    with pytest.raises(ValueError, match='--show-dir needs a visualizer'):
        prepare(cfg, 'out')


def test_tta_of_several_parts():
    """Every part gets the pipeline, what wraps them none."""
    read, tta = [dict(type='LoadImageFromFile')], [dict(type='TestTimeAug')]
    parts = [dict(type='CustomDataset', pipeline=read) for _ in range(3)]
    repeated = dict(type='RepeatDataset', dataset=parts[2], times=2)
    parts[2:] = [repeated]
    dataset = dict(type='ConcatDataset', datasets=parts)
    cfg = Config(
        dict(
            model={},
            test_dataloader=dict(dataset=dataset),
            tta_model=dict(type='AverageClsScoreTTA'),
            tta_pipeline=tta,
        )
    )
    runpy.run_path(str(ROOT / 'tools/test.py'))['use_tta'](cfg)
    found = cfg.test_dataloader.dataset
    *simple, repeated = found.datasets
    for part in (*simple, repeated.dataset):
        assert part.pipeline == tta
    assert 'pipeline' not in found and 'pipeline' not in repeated


def seen(classes, **kwargs):
    """What a segmenter may say of a picture of 1 x 2 pixels."""
    from mmseg.structures import SegDataSample

    mask = PixelData(data=torch.tensor([[classes]]))
    return SegDataSample(pred_sem_seg=mask, metainfo=kwargs)


def hook_writes(hook, dataset, samples, inputs=(), visualizer=None):
    """Call a hook as a runner's loop does, with one batch."""
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(
        test_loop=SimpleNamespace(dataloader=loader), visualizer=visualizer
    )
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, dict(inputs=inputs), samples)
    return written(hook.out_dir)


def test_every_process_paints(monkeypatch, tmp_path):
    """Also what has no path, by numbers that no other process has."""
    from mmseg.visualization import SegLocalVisualizer

    visualizer = SegLocalVisualizer()
    visualizer.dataset_meta = dict(classes=['a', 'b'], palette=[[9] * 3] * 2)
    for module in ('mmengine.dist.utils', 'vcmamba_mm.training.results'):
        monkeypatch.setattr(f'{module}.get_dist_info', lambda: (1, 2))
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group: 1)
    assert hook_writes(
        PaintHook(tmp_path),
        Pictures('x', '1.jpg'),
        3 * [seen([0, 1])],
        3 * [torch.zeros(3, 1, 2, dtype=torch.uint8)],
        visualizer,
    ) == ['000001.png', '000003.png', '000005.png']


def test_more_classes_than_a_byte_has(tmp_path):
    """With fewer inputs than pictures, as in test-time augmentation."""
    samples = [seen([0, 255]), seen([0, 255], reduce_zero_label=True)]
    names = hook_writes(
        SaveMasksHook(tmp_path), Pictures('x', '1.jpg'), samples
    )
    masks = [np.asarray(Image.open(tmp_path / name)) for name in names]
    assert [mask.tolist() for mask in masks] == [[[0, 255]], [[1, 256]]]
