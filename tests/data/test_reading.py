"""Pictures that cannot be read while training goes on."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, default_collate
from mmengine.logging import MMLogger
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from vcmamba_mm.data.reading import ImageReadError, LoadImageStrict
from vcmamba_mm.training.config import name_unreadable


def reading(max_rate=0.01):
    return TRANSFORMS.build(
        dict(
            type='ReplaceUnreadable',
            transform=dict(type='LoadImageStrict'),
            max_rate=max_rate,
        )
    )


class Pictures(BaseDataset):
    def __init__(self, folder, **kwargs):
        self.folder = folder
        super().__init__(**kwargs)

    def load_data_list(self):
        return [
            dict(img_path=str(path))
            for path in sorted(self.folder.glob('*.png'))
        ]


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of which 3.png and 7.png are none."""
    for i in range(10):
        Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(
            tmp_path / f'{i}.png'
        )
    (tmp_path / '3.png').write_bytes(b'not a picture')
    (tmp_path / '7.png').unlink()
    (tmp_path / '7.png').symlink_to(tmp_path / 'gone')
    return tmp_path


def shown(results):
    return torch.tensor(results['img'][0, 0, 0].item())


@pytest.fixture
def log(tmp_path_factory):
    """The log file, into which worker processes write too."""
    path = tmp_path_factory.mktemp('log') / 'train.log'
    MMLogger.get_instance(f'log {path}', log_file=str(path))
    return path


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_counted_named_and_replaced(folder, log, workers):
    # A picture that stands in may be unreadable too, and another is taken.
    read = reading(max_rate=0.5)
    dataset = Pictures(folder, pipeline=[read, shown])
    loader = DataLoader(
        dataset, batch_size=2, num_workers=workers, collate_fn=default_collate
    )
    for epoch in (1, 2, 3):
        values = torch.cat(list(loader)).tolist()
        others = [v for i, v in enumerate(values) if i not in (3, 7)]
        assert others == [0, 1, 2, 4, 5, 6, 8, 9]
        assert not {values[3], values[7]} & {3, 7}
        total, failed = read.counts
        assert failed >= 2 * epoch
        assert total - failed == 10 * epoch
    text = log.read_text()
    for name in ('3.png', '7.png'):
        times = len(re.findall(f'{folder}/{name} cannot be read', text))
        assert times >= 3
    assert len(re.findall('Another takes its place', text)) == failed
    if workers < 2:
        assert f'({failed} of ' in text


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_stop_the_run(folder, workers):
    """All workers' together: 5 are allowed, the 6th is too much."""
    read = reading(max_rate=0.005)
    dataset = Pictures(folder, pipeline=[read, shown])
    loader = DataLoader(dataset, batch_size=2, num_workers=workers)
    with pytest.raises(ImageReadError) as error:
        for _ in range(4):
            list(loader)
    assert re.search(
        r'[37]\.png cannot be read .*[67] of \d+ images so far could not be '
        r'read, more than max_rate=0.005 allows',
        str(error.value),
    )
    assert read.counts[1] in (6, 7)  # the other worker may have failed too


def test_the_rate_is_that_of_all(folder):
    """After 2000 good ones, one percent are 20."""
    read = reading()
    good = dict(img_path=str(folder / '0.png'))
    bad = dict(img_path=str(folder / '3.png'))
    for _ in range(2000):
        read(dict(good))
    for _ in range(20):
        assert read(dict(bad)) is None
    with pytest.raises(ImageReadError, match='21 of 2021 images'):
        read(dict(bad))


def test_none_allowed(folder):
    with pytest.raises(ImageReadError, match='max_rate=0 allows'):
        reading(max_rate=0)(dict(img_path=str(folder / '3.png')))
    with pytest.raises(ValueError, match='must be in'):
        reading(max_rate=1.0)


def test_shown_by_every_process(folder, monkeypatch):
    """MMEngine's loggers of other processes show errors only."""
    logged = []
    monkeypatch.setattr(
        'vcmamba_mm.data.reading.print_log', lambda *args: logged.append(args)
    )
    reading()(dict(img_path=str(folder / '3.png')))
    ((text, _, level),) = logged
    assert '3.png cannot be read' in text and level == logging.ERROR


def test_other_errors_pass(folder, monkeypatch):
    def transform(self, results):
        raise MemoryError

    monkeypatch.setattr(LoadImageStrict, 'transform', transform)
    read = reading()
    with pytest.raises(MemoryError):
        read(dict(img_path=str(folder / '0.png')))
    assert read.counts == (1, 0)


# ---------------------------------------------------------------------- masks


@pytest.fixture
def scene(folder):
    """A picture, and its mask in a file of 80 bytes or so."""
    pytest.importorskip('mmseg.datasets')
    init_default_scope('mmseg')
    mask = folder / 'masks' / '0.png'
    mask.parent.mkdir()
    Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2)).save(mask)
    return dict(
        img_path=str(folder / '0.png'),
        seg_map_path=str(mask),
        reduce_zero_label=False,
        seg_fields=[],
    )


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_masks_cut_anywhere(scene, log, backend):
    loading = dict(type='LoadMaskStrict', imdecode_backend=backend)
    reading = TRANSFORMS.build(
        dict(
            type='ReplaceUnreadable',
            transform=[dict(type='LoadImageStrict'), loading],
            max_rate=0.9,
        )
    )
    results = reading(dict(scene))
    assert results['gt_seg_map'].tolist() == [[0, 1], [2, 3]]
    path = Path(scene['seg_map_path'])
    content = path.read_bytes()
    end = content.index(b'IDAT') + 6  # before any of the pixels
    for length in range(end):
        path.write_bytes(content[:length])
        assert reading(dict(scene)) is None
    path.unlink()
    assert reading(dict(scene)) is None
    assert reading.counts == (end + 2, end + 1)
    text = log.read_text()
    assert text.count(f'mask {path} cannot be read (missing') == end + 1
    assert f'({end + 1} of {end + 2} images so far)' in text


def test_stock_loading_is_replaced_wherever_it_is():
    """In any scope, by class, and below wrappers of data sets."""
    pytest.importorskip('mmseg')
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets.transforms import LoadAnnotations

    kinds = [
        ('LoadImageFromFile', 'LoadAnnotations'),
        ('mmcv.LoadImageFromFile', 'mmseg.LoadAnnotations'),
        (LoadImageFromFile, LoadAnnotations),
    ]
    data = [
        dict(pipeline=[dict(type=picture), [dict(type=mask, as_shown=True)]])
        for picture, mask in kinds
    ]
    other = dict(type='other.LoadAnnotations')
    dataset = dict(type='RepeatDataset', dataset=dict(datasets=[*data, other]))
    cfg = Config(
        dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset))
    )
    name_unreadable(cfg, 'train')
    *data, last = cfg.train_dataloader.dataset.dataset.datasets
    assert last == other
    for picture, (mask,) in (its.pipeline for its in data):
        assert picture == dict(type='LoadImageStrict')
        assert mask == dict(type='LoadMaskStrict', as_shown=True)
    assert cfg.default_hooks.check_masks.type == 'CheckMasksHook'


def test_what_was_raised_is_said(scene, monkeypatch):
    """It may be a fault of the storage, not of the mask."""

    def failing(path, backend_args):
        raise OSError('the disk is\n gone')

    monkeypatch.setattr('vcmamba_mm.data.masks.fileio.get', failing)
    with pytest.raises(ImageReadError) as caught:
        TRANSFORMS.build(dict(type='LoadMaskStrict'))(dict(scene))
    assert str(caught.value).endswith('(OSError: the disk is gone)')


def test_what_is_wrong_with_the_config_passes(scene):
    loading = TRANSFORMS.build(
        dict(type='LoadMaskStrict', reduce_zero_label=True)
    )
    with pytest.raises(ValueError, match='reduce_zero_label'):
        loading(dict(scene))
