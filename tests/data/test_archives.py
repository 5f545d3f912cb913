"""Archives against the folders they were made from."""

import io
import json
import tarfile

import numpy as np
import pytest
from mmengine import fileio
from mmengine.fileio import LmdbBackend, LocalBackend
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from vcmamba_mm.data.archives import (
    ArchiveError,
    LmdbPathBackend,
    TarBackend,
    find_files,
    index_tar,
    write_lmdb,
    write_tar,
)

# Names that sort differently as paths and as text, depth 0 to 3
NAMES = [
    'readme.txt',
    'meta/train.txt',
    'train/a/1.jpg',
    'train/a/10.jpg',
    'train/a/2.JPG',
    'train/a-b/1.jpg',
    'train/a.b/1.jpg',
    'train/b/deep/x.png',
    'train/b/x.jpg',
    'val/ü/ß.jpg',
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('folder')
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f'{name}\n'.encode() * (i * 50))
    (root / 'train' / '.hidden').write_bytes(b'x')
    return root


def files_of(folder):
    return (
        (name, (folder / name).read_bytes()) for name in find_files(folder)
    )


@pytest.fixture(scope='module', params=['tar', 'lmdb'])
def archive(request, folder, tmp_path_factory):
    """Path of an archive with what is in the folder."""
    target = tmp_path_factory.mktemp('archives') / 'inside' / request.param
    if request.param == 'tar':
        write_tar(files_of(folder), target, shard_bytes=1500)
        assert len(list(target.glob('*.tar'))) > 2
    else:
        pytest.importorskip('lmdb')
        write_lmdb(files_of(folder), target)
    assert [path.name for path in target.parent.iterdir()] == [request.param]
    return f'{request.param}://{target}'


def test_contents(archive, folder):
    for name in NAMES:
        content = (folder / name).read_bytes()
        path = fileio.join_path(archive, name)
        assert fileio.get(path) == content
        assert fileio.get_text(path) == content.decode()
    assert fileio.get(f'{archive}/train/./a//1.jpg').startswith(b'train/a/1')


@pytest.mark.parametrize('suffix', [None, '.jpg', ('.txt', '.png')])
@pytest.mark.parametrize('recursive', [False, True])
@pytest.mark.parametrize('below', ['', 'train', 'train/a', 'train/b', 'val'])
def test_listing(archive, folder, below, recursive, suffix):
    for dirs, files in ((True, True), (True, False), (False, True)):
        if dirs and suffix:
            continue  # MMEngine refuses
        kwargs = dict(
            list_dir=dirs,
            list_file=files,
            suffix=suffix,
            recursive=recursive,
        )
        expected = LocalBackend().list_dir_or_file(folder / below, **kwargs)
        listed = list(
            fileio.list_dir_or_file(fileio.join_path(archive, below), **kwargs)
        )
        assert sorted(listed) == sorted(expected)
        assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    'name',
    ['train', 'train/a', 'train/a/1.jpg', 'tra', 'train/a/1', 'x/y', ''],
)
def test_what_is_there(archive, folder, name):
    path = fileio.join_path(archive, name)
    for ask in (fileio.exists, fileio.isdir, fileio.isfile):
        assert ask(path) == ask(str(folder / name))


def test_missing(archive, tmp_path):
    with pytest.raises(FileNotFoundError, match='is not in the archive'):
        fileio.get(f'{archive}/train/a/3.jpg')
    for prefix in ('tar', 'lmdb'):
        path = f'{prefix}://{tmp_path}/a.jpg'
        assert not fileio.exists(path)
        with pytest.raises(FileNotFoundError, match='no archive there'):
            fileio.get(path)


class Reader:
    def __init__(self, archive):
        self.paths = [f'{archive}/{name}' for name in NAMES]
        fileio.get(self.paths[0])  # opened before the workers are made

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return fileio.get(self.paths[i])


def test_in_worker_processes(archive, folder):
    reader = Reader(archive)
    loader = DataLoader(reader, batch_size=None, num_workers=2)
    expected = [(folder / name).read_bytes() for name in NAMES]
    assert list(loader) == expected
    assert [reader[i] for i in range(len(reader))] == expected


def test_mmengine_reads_the_lmdb(folder, tmp_path):
    pytest.importorskip('lmdb')
    write_lmdb(files_of(folder), tmp_path / 'lmdb')
    backend = LmdbBackend(tmp_path / 'lmdb')
    for name in NAMES[:-1]:  # it takes ASCII only
        assert backend.get(name) == (folder / name).read_bytes()


@pytest.mark.parametrize('write', [write_tar, write_lmdb])
def test_all_or_nothing(write, tmp_path):
    if write is write_lmdb:
        pytest.importorskip('lmdb')

    def files():
        yield 'a', b'x' * 10**5
        raise OSError('the disk of the source is gone')

    with pytest.raises(OSError, match='is gone'):
        write(files(), tmp_path / 'target')
    assert not list(tmp_path.iterdir())
    write(iter([('a', b'x')]), tmp_path / 'target')
    with pytest.raises(FileExistsError, match='is there already'):
        write(iter([('b', b'y')]), tmp_path / 'target')
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def shards(folder, tmp_path):
    write_tar(files_of(folder), tmp_path / 'shards', shard_bytes=1500)
    TarBackend._opened.clear()
    return tmp_path / 'shards'


def test_changed_shards_are_noticed(shards):
    with open(shards / '000001.tar', 'ab') as file:
        file.write(bytes(512))
    with pytest.raises(
        ArchiveError, match='000001.tar is gone or has changed'
    ):
        fileio.get(f'tar://{shards}/readme.txt')
    assert index_tar(shards) == len(NAMES)
    assert fileio.get(f'tar://{shards}/meta/train.txt')


def test_an_index_of_something_else(shards):
    described = json.loads((shards / 'shards.json').read_text())
    for change, message in (
        (dict(files=3), 'index of something else'),
        (dict(format=0), 'has another format'),
    ):
        (shards / 'shards.json').write_text(json.dumps(described | change))
        with pytest.raises(ArchiveError, match=message):
            fileio.get(f'tar://{shards}/readme.txt')


def test_shards_cut_while_in_use(shards):
    fileio.get(f'tar://{shards}/readme.txt')
    for path in shards.glob('*.tar'):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ArchiveError, match='is cut off'):
        for name in NAMES:
            fileio.get(f'tar://{shards}/{name}')


def make_tar(path, names, mode='w'):
    with tarfile.open(path, mode) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b'abc'))


def test_tar_files_that_cannot_be_indexed(tmp_path):
    with pytest.raises(FileNotFoundError, match='no files'):
        index_tar(tmp_path)
    make_tar(tmp_path / '0.tar', ['a/x', 'b/x'])
    make_tar(tmp_path / '1.tar', ['c/x', './a/x'])
    with pytest.raises(ArchiveError, match='a/x is in .*0.tar and in .*1.tar'):
        index_tar(tmp_path)
    make_tar(tmp_path / '1.tar', ['c/x'], 'w:gz')
    with pytest.raises(ArchiveError, match='1.tar is compressed'):
        index_tar(tmp_path)
    assert not list(tmp_path.glob('index*')) + list(tmp_path.glob('.*'))


# ------------------------------------------------------------ whole data sets


def noise(path, rng, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (24, 32, 3) if mode == 'RGB' else (24, 32)
    top = 256 if mode == 'RGB' else 4
    Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(path)


def same_samples(cfg, folder, archive, registry):
    """Build a data set on both; compare annotations and pixels."""
    one = registry.build(cfg | dict(data_root=str(folder)))
    other = registry.build(cfg | dict(data_root=archive))
    assert len(one) == len(other) > 0
    assert one.metainfo == other.metainfo
    for i in range(len(one)):
        a, b = one.get_data_info(i), other.get_data_info(i)
        assert b['img_path'] == a['img_path'].replace(str(folder), archive)
        assert a.get('gt_label') == b.get('gt_label')
        a, b = one[i], other[i]
        assert np.array_equal(a['img'], b['img'])
        if 'gt_seg_map' in a:
            assert np.array_equal(a['gt_seg_map'], b['gt_seg_map'])


@pytest.fixture(params=['tar', 'lmdb'])
def pack(request, tmp_path):
    """Put a folder into an archive; return its path."""

    def pack(folder):
        target = tmp_path / 'archive'
        if request.param == 'lmdb':
            pytest.importorskip('lmdb')
            write_lmdb(files_of(folder), target)
        else:
            write_tar(files_of(folder), target, shard_bytes=5000)
        return f'{request.param}://{target}'

    return pack


def test_classification_data_sets(pack, tmp_path):
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import DATASETS

    init_default_scope('mmpretrain')
    folder, rng = tmp_path / 'folder', np.random.default_rng(0)
    names = [f'{c}/{i}.JPEG' for c in ('cat', 'dog', 'eel') for i in range(3)]
    for split in ('train', 'val'):
        for name in names:
            noise(folder / split / name, rng, 'RGB')
    (folder / 'meta').mkdir()
    (folder / 'meta/val.txt').write_text(
        '\n'.join(f'{name} {7 * i}' for i, name in enumerate(names))
    )
    archive = pack(folder)
    pipeline = [dict(type='LoadImageStrict')]
    for split in ('train', 'val'):
        cfg = dict(type='ImageNet', split=split, pipeline=pipeline)
        cfg['metainfo'] = dict(classes=['cat', 'dog', 'eel'])
        same_samples(cfg, folder, archive, DATASETS)
    cfg = dict(type='CustomDataset', data_prefix='train', pipeline=pipeline)
    same_samples(cfg, folder, archive, DATASETS)


def test_segmentation_data_set(pack, tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.registry import DATASETS

    init_default_scope('mmseg')
    folder, rng = tmp_path / 'folder', np.random.default_rng(0)
    for i in range(3):
        noise(folder / f'images/training/{i}.jpg', rng, 'RGB')
        noise(folder / f'annotations/training/{i}.png', rng, 'L')
    cfg = dict(
        type='ADE20KDataset',
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        pipeline=[
            dict(type='LoadImageStrict'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
        ],
    )
    same_samples(cfg, folder, pack(folder), DATASETS)


def test_webdataset_layout(tmp_path):
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import DATASETS

    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    rng = np.random.default_rng(0)
    labels, pixels = {}, {}
    for shard in range(2):
        with tarfile.open(tmp_path / f'train-{shard:06}.tar', 'w') as tar:
            for i in range(3):
                key = f'{shard}{i:04}'
                noise(tmp_path / 'x.png', rng, 'RGB')
                pixels[key] = np.asarray(Image.open(tmp_path / 'x.png'))
                labels[key] = int(rng.integers(1000))
                for name, content in (
                    (f'{key}.cls', str(labels[key]).encode()),
                    (f'{key}.PNG', (tmp_path / 'x.png').read_bytes()),
                    (f'{key}.json', b'{}'),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (tmp_path / 'x.png').unlink()
    index_tar(tmp_path)
    cfg = dict(
        type='WebDataset',
        data_root=f'tar://{tmp_path}',
        pipeline=[dict(type='LoadImageStrict')],
    )
    dataset = DATASETS.build(cfg)
    assert len(dataset) == 6
    for sample in dataset:
        key = sample['img_path'].rsplit('/', 1)[1].split('.')[0]
        assert sample['gt_label'] == labels.pop(key)
        assert np.array_equal(sample['img'][..., ::-1], pixels[key])
    assert not labels

    make_tar(tmp_path / 'train-000002.tar', ['lonely.png'])
    index_tar(tmp_path)
    TarBackend._opened.clear()
    with pytest.raises(ValueError, match='1 of them without a class.*lonely'):
        DATASETS.build(cfg)


def test_backends_are_registered():
    assert isinstance(fileio.get_file_backend('tar://x'), TarBackend)
    assert isinstance(fileio.get_file_backend('lmdb://x'), LmdbPathBackend)
