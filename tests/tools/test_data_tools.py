"""make_shards.py and browse_dataset.py, by running them."""

import re
import runpy
import sys

import numpy as np
import pytest
from conftest import CONFIGS, ROOT
from mmengine import fileio
from PIL import Image

from vcmamba_mm.data.cropping import open_picture


@pytest.fixture
def tool(monkeypatch, capfd):
    """Run a tool in this process; return its exit code and last line."""

    def tool(script, *args):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, 'argv', [script, *map(str, args)])
        code = 0
        try:
            runpy.run_path(f'tools/{script}', run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, (err if code else out).strip().splitlines()[-1]

    return tool


@pytest.fixture
def folder(tmp_path):
    """Class folders with a JPEG and a PNG each, and one that is damaged."""
    root, rng = tmp_path / 'folder', np.random.default_rng(0)
    for label in ('cat', 'dog', 'eel'):
        (root / 'train' / label).mkdir(parents=True)
        for name in ('1.jpg', '2.png'):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'train' / label / name)
    damaged = root / 'train/eel/3.jpg'
    damaged.write_bytes((root / 'train/eel/1.jpg').read_bytes()[:500])
    return root


@pytest.mark.parametrize('kind', ['tar', 'lmdb'])
@pytest.mark.parametrize('decode', [False, True])
def test_make_shards(tool, folder, tmp_path, kind, decode):
    if kind == 'lmdb':
        pytest.importorskip('lmdb')
    target = tmp_path / 'archive'
    code, line = tool(
        'make_shards.py',
        folder,
        target,
        '--format',
        kind,
        *(['--decode'] if decode else []),
    )
    assert code == 0
    assert (
        line
        == f'7 files in {target}: read it with data_root={kind}://{target}'
    )
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        name = path.relative_to(folder).as_posix()
        got, there = fileio.get(f'{kind}://{target}/{name}'), path.read_bytes()
        if decode and path.name == '1.jpg':
            assert got.startswith(b'P6\n50 40\n')
            got, there = open_picture(got), open_picture(there)
            box = (0, 0, *there.shape)
            assert np.array_equal(
                got.crop(box, (99, 99)), there.crop(box, (99, 99))
            )
        else:
            assert got == there


def test_make_shards_indexes_what_is_there(tool, folder, tmp_path):
    target = tmp_path / 'archive'
    tool('make_shards.py', folder, target)
    (target / 'index.npy').unlink()
    assert tool('make_shards.py', target) == (0, '7 files indexed')
    assert fileio.exists(f'tar://{target}/train/cat/1.jpg')


@pytest.mark.parametrize(
    'args, message',
    [
        (['nowhere', 'x'], 'folder nowhere does not exist'),
        (['tests/data', 'tests'], 'is there already'),
        (['tests/data'], 'there are no files *.tar in'),
        (['tests/data', 'x', '--shard-size', '0'], 'must be positive'),
        (['tests/data', '--decode'], '--decode needs a TARGET'),
        (['tests/data', 'x', '--format', 'zip'], "invalid choice: 'zip'"),
    ],
)
def test_make_shards_refuses(tool, args, message):
    code, line = tool('make_shards.py', *args)
    assert code == 2 and message in line
    assert not (ROOT / 'x').exists()


def test_make_shards_leaves_nothing_half_done(
    tool, folder, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('numpy.save', full)
    code, line = tool('make_shards.py', folder, tmp_path / 'archive')
    assert code == 2 and 'No space left on device' in line
    assert [path.name for path in tmp_path.iterdir()] == ['folder']


# ---------------------------------------------------------------- browsing


def test_browse_mixed_labels(tool, tmp_path):
    """Colours tell the class, so that the mixture can be read off."""
    pytest.importorskip('mmpretrain')
    root = tmp_path / 'pictures'
    for i in range(10):
        path = root / 'train' / str(i) / 'x.png'
        path.parent.mkdir(parents=True)
        Image.new('RGB', (64, 64), (250 if i % 2 else 5, 0, 128)).save(path)
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{CONFIGS / 'tiny_classifier.py'}'\n"
        f"train_dataloader = dict(dataset=dict(data_root='{root}', pipeline=["
        "dict(type='SeedSample'), dict(type='LoadRandomResizedCrop', scale=64)"
        ", dict(type='FastPackInputs')]))\n"
    )
    out = tmp_path / 'deep' / 'browse.png'
    code, line = tool(
        'browse_dataset.py',
        config,
        '--out',
        out,
        '--batches',
        2,
        '--batch-size',
        5,
    )
    assert (code, line) == (0, f'written: {out}')
    sheet = np.asarray(Image.open(out))
    # 64 pixels are shown three times as large, two lines of text below
    height, width = 3 * 64 + 28, 3 * 64 + 4
    assert sheet.shape == (2 * height, 5 * width, 3)
    reds = sheet[..., 0].reshape(2, height, 5, width)[:, :192, :, :192]
    for batch in reds.transpose(0, 2, 1, 3):
        means = batch.mean((1, 2))
        assert ((means > 3) & (means < 252)).all()
    # blue is in every picture the same, normalization undone
    blues = sheet[..., 2].reshape(2, height, 5, width)[:, :192, :, :192]
    assert set(np.unique(blues)) == {128}
    texts = sheet.reshape(2, height, 5, width, 3)[:, 192:]
    assert (texts.max((1, 3, 4)) > 200).all()


def test_browse_describes_labels():
    pytest.importorskip('mmpretrain')
    import torch
    from mmpretrain.structures import DataSample

    describe = runpy.run_path(str(ROOT / 'tools/browse_dataset.py'))[
        'describe'
    ]
    classes = ('cat, felis', 'dog', 'eel')
    mixed = DataSample().set_gt_score(torch.tensor([0.3, 0.0, 0.7]))
    assert describe(mixed, classes) == ['0.70 eel', '0.30 cat']
    whole = DataSample().set_gt_score(torch.tensor([0.0, 1.0, 0.0]))
    assert describe(whole, classes) == ['1.00 dog']
    assert describe(DataSample().set_gt_label(2), classes) == ['eel']
    assert describe(DataSample().set_gt_label(2), ()) == ['class 2']
    assert describe(DataSample(), classes) == []


def test_browse_label_maps(tool, tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.datasets import ADE20KDataset

    root = tmp_path / 'scenes'
    for kind, mode, value in (
        ('images', 'RGB', (100, 100, 100)),
        ('annotations', 'L', 3),  # the third class
    ):
        folder = root / kind / 'training'
        folder.mkdir(parents=True)
        for i in range(2):
            suffix = 'jpg' if mode == 'RGB' else 'png'
            Image.new(mode, (96, 96), value).save(folder / f'{i}.{suffix}')
    out = tmp_path / 'browse.png'
    code, _ = tool(
        'browse_dataset.py',
        CONFIGS / 'tiny_segmenter.py',
        '--out',
        out,
        '--batches',
        1,
        '--batch-size',
        2,
        '--cfg-options',
        f'train_dataloader.dataset.data_root={root}',
        'train_dataloader.dataset.pipeline.2.scale=(96,96)',
        'train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.0)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'train_dataloader.dataset.pipeline.3.cat_max_ratio=1.0',
        'train_dataloader.dataset.pipeline.5.type=Resize',
        'train_dataloader.dataset.pipeline.5.scale=(64,64)',
    )
    assert code == 0
    sheet = np.asarray(Image.open(out)).astype(int)
    color = np.array(ADE20KDataset.METAINFO['palette'][2])
    expected = (100 + color) // 2
    assert np.abs(sheet[:192, :192] - expected).max() <= 1


def test_browse_errors(tool):
    pytest.importorskip('mmpretrain')
    code, line = tool('browse_dataset.py', CONFIGS / 'tiny_classifier.py')
    assert code == 2 and 'data folder data/tiny does not exist' in line
    code, line = tool('browse_dataset.py', 'none.py')
    assert code == 2 and re.search('config none.py does not exist', line)
    code, line = tool('browse_dataset.py', 'none.py', '--batches', 0)
    assert code == 2 and 'must be positive' in line


@pytest.mark.parametrize('ignored', [255, 256])
def test_browse_paints_label_maps_of_another_size(ignored):
    """In testing a picture is resized, its label map is not."""
    pytest.importorskip('mmseg')
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    paint = runpy.run_path(str(ROOT / 'tools/browse_dataset.py'))['paint']
    labels = torch.tensor([[0, ignored], [1, 0]])
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels[None]))
    palette = np.array([[100, 0, 0], [0, 200, 0]])
    painted = paint(np.full((4, 6, 3), 20, np.uint8), sample, palette)
    expected = np.array([[[60, 10, 10], [20, 20, 20]],
                         [[10, 110, 10], [60, 10, 10]]])  # fmt: skip
    assert (painted == expected.repeat(2, 0).repeat(3, 1)).all()
