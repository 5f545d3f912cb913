"""Which files are used, and that the others are named."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, ROOT
from mmengine.dataset import ConcatDataset
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils.data import Subset

from vcmamba_mm.data.archives import find_files, index_tar, write_tar
from vcmamba_mm.data.folders import (
    PICTURES,
    compare_folders,
    is_picture,
    parts_of,
)
from vcmamba_mm.data.masks import MaskError
from vcmamba_mm.demo.image import find_pictures


@pytest.fixture
def lines(tmp_path_factory):
    """What is logged, line by line."""
    path = tmp_path_factory.mktemp('log') / 'train.log'
    MMLogger.get_instance(f'log {path}', log_file=str(path))
    return lambda: path.read_text().splitlines()


def fill(folder, *names):
    pixels = np.zeros((4, 6), np.uint8)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if is_picture(name) or 'checkpoints' in name:
            Image.fromarray(pixels).save(folder / name, 'PNG')
        else:
            (folder / name).write_bytes(b'0')


NAMES = [
    f'{label}/{i}{end}' for label in 'ab' for i, end in enumerate(PICTURES)
]
OTHERS = ['a/x.JPG', 'b/deep/y.WebP', 'a/notes.txt', 'b/z.gif', 'b/z2.gif']
HIDDEN = ['.ipynb_checkpoints/a-checkpoint.jpg', 'a/.hidden.jpg']
HIDDEN += ['b/.ipynb_checkpoints/b-checkpoint.jpg']
LOST = ['c.jpg']  # in no class


@pytest.mark.parametrize('archive', [False, True])
def test_class_folders(tmp_path, lines, archive):
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import DATASETS

    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    root = tmp_path / 'folder'
    fill(root, *NAMES, *OTHERS, *HIDDEN, *LOST)
    where = str(root)
    if archive:
        names = [*NAMES, *OTHERS, *LOST, HIDDEN[0], HIDDEN[2]]
        files = ((name, (root / name).read_bytes()) for name in names)
        write_tar(files, tmp_path / 'tar')
        where = f'tar://{tmp_path}/tar'
    dataset = DATASETS.build(
        dict(
            type='ClassFolders',
            data_root=where,
            pipeline=[dict(type='LoadImageStrict')],
        )
    )
    assert dataset.metainfo['classes'] == ('a', 'b')
    used = {
        its['img_path'][len(where) + 1 :]: its['gt_label']
        for its in map(dataset.get_data_info, range(len(dataset)))
    }
    assert used == {
        name: 'ab'.index(name[0])
        for name in [*NAMES, 'a/x.JPG', 'b/deep/y.WebP']
    }
    assert all(sample['img'].shape == (4, 6, 3) for sample in dataset)
    (line,) = (line for line in lines() if 'left out' in line)
    for words in ('4 files are left out', '2 .gif', '1 .txt', '1 .jpg'):
        assert words in line
    assert '.webp' in line.split('end in')[1]


@pytest.mark.parametrize('archive', [False, True])
@pytest.mark.parametrize('kind', ['ClassFolders', 'ImageNet'])
@pytest.mark.parametrize('with_label', [False, True])
def test_left_out_is_said_once(tmp_path, lines, archive, kind, with_label):
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import DATASETS

    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    names = ['a/0.jpg', 'b/0.jpg', 'b/1.gif', 'b/.hidden.gif', '2.jpg']
    root = tmp_path / 'folder'
    fill(root, *names)
    where = str(root)
    if archive:
        files = ((name, (root / name).read_bytes()) for name in names)
        write_tar(files, tmp_path / 'tar')
        where = f'tar://{tmp_path}/tar'
    dataset = DATASETS.build(
        dict(
            type=kind,
            data_root=where,
            with_label=with_label,
            extensions=('.jpg',),
            metainfo=dict(classes=('a', 'b')),
        )
    )
    assert len(dataset) == (2 if with_label else 3)
    compare_folders(dataset)
    (line,) = (line for line in lines() if 'left out' in line)
    assert '1 .gif' in line and line.endswith('end in .jpg')
    assert ('1 .jpg' in line) == with_label  # 2.jpg is in no class


def test_nothing_is_said_of_what_a_list_leaves_out(tmp_path, lines):
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets import ImageNet

    fill(tmp_path, 'a/0.jpg', 'a/1.webp')
    (tmp_path / 'list.txt').write_text('a/0.jpg 0\n')
    compare_folders(ImageNet(str(tmp_path), ann_file='list.txt'))
    assert not lines()


def test_class_folders_as_the_stock_ones(tmp_path):
    """The same samples in the same order where nothing is left out."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import DATASETS

    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    fill(tmp_path, 'a-b/1.jpg', 'a/10.png', 'a/2.png', 'a/d/1.png', 'b/1.jpg')
    (tmp_path / 'empty').mkdir()
    ours, stock = (
        DATASETS.build(dict(type=kind, data_root=str(tmp_path)))
        for kind in ('ClassFolders', 'CustomDataset')
    )
    assert ours.metainfo['classes'] == stock.metainfo['classes']
    for i, sample in enumerate(stock):
        assert ours[i] == sample
    assert len(ours) == len(stock) == 5


def test_no_pictures_and_other_classes(tmp_path):
    pytest.importorskip('mmpretrain')
    from vcmamba_mm.classification import ClassFolders

    fill(tmp_path, 'a/x.gif')
    with pytest.raises(ValueError, match='has no images: images lie in'):
        ClassFolders(data_root=str(tmp_path))
    with pytest.raises(ValueError, match='1 folders, the config names 2 cl'):
        ClassFolders(
            data_root=str(tmp_path), metainfo=dict(classes=('a', 'b'))
        )


def test_numbers_without_pictures(tmp_path, lines):
    pytest.importorskip('mmpretrain')
    from vcmamba_mm.classification import WebDataset

    folder = tmp_path / 'folder'
    fill(folder, '0.webp', '0.cls', '1.jfif', '1.cls', '2.gif', '2.cls')
    write_tar(
        ((name, (folder / name).read_bytes()) for name in find_files(folder)),
        tmp_path / 'tar',
    )
    index_tar(tmp_path / 'tar')
    dataset = WebDataset(data_root=f'tar://{tmp_path}/tar')
    assert len(dataset) == 2
    (line,) = (line for line in lines() if 'left out' in line)
    assert '1 files are left out (1 .cls): no image is beside' in line
    fill(folder, '3.jpg')
    (folder / '3.cls').write_text('cat')
    write_tar(
        ((name, (folder / name).read_bytes()) for name in find_files(folder)),
        tmp_path / 'other',
    )
    with pytest.raises(ValueError, match="3.cls holds b'cat', which is no"):
        WebDataset(data_root=f'tar://{tmp_path}/other')


@pytest.fixture
def scenes(tmp_path):
    """A function that builds a data set of files."""
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset

    init_default_scope('mmseg')

    def scenes(*names, **kwargs):
        fill(tmp_path, 'pictures/.hidden.jpg', 'masks/.hidden.png', *names)
        return BaseSegDataset(
            data_root=str(tmp_path),
            data_prefix=dict(img_path='pictures', seg_map_path='masks'),
            **kwargs,
        )

    return scenes


PAIRS = ('pictures/0.jpg', 'masks/0.png', 'pictures/a/1.jpg', 'masks/a/1.png')


def test_pairs_that_are_complete(scenes, lines):
    compare_folders(scenes(*PAIRS))
    assert not lines()


def test_pictures_with_other_endings(scenes, lines):
    dataset = scenes(*PAIRS, 'pictures/2.JPG', 'pictures/3.png')
    (part,) = parts_of(Subset(ConcatDataset([dataset]), [0]))
    compare_folders(part)
    (line,) = lines()
    for words in ('2 files are left out', '1 .JPG', '1 .png', 'end in .jpg'):
        assert words in line


def test_only_other_endings(run_here, tmp_path):
    pytest.importorskip('mmseg')
    fill(tmp_path / 'images/training', '0.png')
    fill(tmp_path / 'annotations/training', '0.png')
    error = run_here(
        'train.py',
        CONFIGS / 'tiny_segmenter.py',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        'model.backbone.init_cfg=None',
        f'train_dataloader.dataset.data_root={tmp_path}',
        f'val_dataloader.dataset.data_root={tmp_path}',
    )
    assert 'error: train_dataloader.dataset finds no images' in error
    assert 'img_suffix' in error


def test_lonely_pictures_and_masks(scenes, lines, tmp_path):
    compare_folders(scenes(*PAIRS, 'pictures/2.jpg', 'masks/a/3.png'))
    first, second = lines()
    assert re.search('1 of 3 images have no mask, .*pictures/2.jpg', first)
    assert first.endswith('masks/2.png is missing')
    assert '1 of 3 masks have no image' in second
    assert second.endswith('masks/a/3.png')
    (tmp_path / 'list.txt').write_text('0\n')
    compare_folders(scenes(ann_file='list.txt'))
    assert len(lines()) == 2  # nothing is said of what a list leaves out


@pytest.mark.parametrize(
    'options', [dict(indices=1), dict(filter_cfg=dict(a=1))]
)
def test_a_part_of_the_pictures(scenes, lines, options):
    compare_folders(scenes(*PAIRS, 'masks/a/3.png', **options))
    assert not lines()
    compare_folders(scenes('pictures/0.jpg', 'pictures/2.jpg', indices=[1]))
    (line,) = lines()
    assert '1 of 1 images have no mask' in line


def test_no_folder_of_masks(scenes, lines, tmp_path):
    dataset = scenes(*PAIRS)
    dataset.data_prefix['seg_map_path'] = f'{tmp_path}/gone'
    message = f'masks {tmp_path}/gone: mend data_prefix.seg_map_path'
    with pytest.raises(MaskError, match=message):
        compare_folders(dataset)
    dataset.test_mode = True
    compare_folders(dataset)
    assert not lines()


def test_one_folder_for_both(tmp_path, lines):
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset

    init_default_scope('mmseg')
    fill(tmp_path, '0.jpg', '0_mask.png', '1.jpg', '1_mask.png')
    dataset = BaseSegDataset(
        data_prefix=dict(img_path=str(tmp_path), seg_map_path=str(tmp_path)),
        seg_map_suffix='_mask.png',
    )
    assert len(dataset) == 2
    compare_folders(dataset)
    assert not lines()


def test_a_data_set_that_finds_its_files_otherwise(lines):
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset

    class Own(BaseSegDataset):
        def load_data_list(self):
            return [dict(img_path='a/0.gif', seg_map_path='b/0.png')]

    init_default_scope('mmseg')
    compare_folders(Own())
    assert not lines()


def test_pictures_to_paint(tmp_path, lines):
    fill(tmp_path, *NAMES, *OTHERS, *HIDDEN)
    found = {str(source) for source, _ in find_pictures([tmp_path], 'out')}
    expected = [*NAMES, 'a/x.JPG', 'b/deep/y.WebP']
    assert found == {str(Path(tmp_path, name)) for name in expected}
    (line,) = lines()
    assert '3 files are left out (2 .gif, 1 .txt)' in line


def test_pictures_to_analyse(tmp_path, lines):
    fill(tmp_path, *NAMES, *OTHERS, *HIDDEN)
    tool = runpy.run_path(str(ROOT / 'tools/analysis/receptive_field.py'))
    found = tool['find_pictures'](str(tmp_path), 100)
    expected = [*NAMES, 'a/x.JPG', 'b/deep/y.WebP']
    assert {*found} == {tmp_path / name for name in expected}
    (line,) = lines()
    assert '3 files are left out (2 .gif, 1 .txt)' in line
