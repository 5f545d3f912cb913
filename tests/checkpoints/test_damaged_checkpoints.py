"""Whatever stands in a checkpoint's file, it is read or refused in one way."""

import io
import json
import random
import struct
import zipfile

import pytest
import torch
from mmengine.logging import MessageHub
from safetensors.torch import save_file

from vcmamba_mm.checkpoints import (
    CheckpointError,
    extract_state_dict,
    read_checkpoint,
)

FILES = 500  # of each layout


def differ(left, right) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() != right.keys() or any(
            differ(left[key], right[key]) for key in left
        )
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return not torch.equal(left, right)
    return left != right


@pytest.fixture(scope='module')
def content():
    """What a run with an average saves, small."""
    hub = MessageHub('test_damaged_checkpoints')
    hub.update_scalar('train/loss', 1.0)
    weights = {'fc.weight': torch.randn(4, 3), 'steps': torch.arange(3)}
    average = {f'module.{key}': value + 1 for key, value in weights.items()}
    return dict(
        meta=dict(epoch=1, iter=2, dataset_meta=dict(classes=('a', 'b'))),
        state_dict=weights,
        ema_state_dict=dict(average, steps=torch.tensor(7)),
        optimizer=dict(
            state={0: dict(step=torch.tensor(1.0), mean=torch.randn(4, 3))},
            param_groups=[dict(lr=0.1, params=[0])],
        ),
        message_hub=hub.state_dict(),
    )


@pytest.fixture(scope='module', params=['zip', 'legacy'])
def layout(request, content):
    file = io.BytesIO()
    is_zip = request.param == 'zip'
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return request.param, file.getvalue()


def damage(content: bytes, rng: random.Random) -> bytes:
    """Overwrite, flip, cut out, cut off or insert some bytes, mostly once.

    A third of the places each are in the first bytes, where headers are, in
    the last ones, where the directory of a zip file is, and anywhere.
    """
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        size = len(data)
        if not size:
            break
        at = rng.choice(
            [
                rng.randrange(size),
                rng.randrange(min(size, 400)),
                size - 1 - rng.randrange(min(size, 600)),
            ]
        )
        count = rng.choice([1, 2, 4, 8])
        noise = rng.choice(
            [rng.randbytes(count), b'\xff' * count, b'\0' * count]
        )
        kind = rng.choice(['overwrite', 'flip', 'cut', 'end', 'insert'])
        if kind == 'overwrite':
            data[at : at + count] = noise
        elif kind == 'flip':
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 'cut':
            del data[at : at + count]
        elif kind == 'end':
            del data[at:]
        else:
            data[at:at] = noise
    return bytes(data)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_read_or_refused(layout, content, tmp_path):
    name, good = layout
    rng = random.Random(0)
    path = tmp_path / 'damaged.pth'
    results = dict.fromkeys(['read', 'refused'], 0)
    for i in range(FILES):
        damaged = damage(good, rng)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
            extract_state_dict(found, path)
        except CheckpointError as error:
            assert str(path) in str(error)
            assert '\n' not in str(error)
            results['refused'] += 1
        except Exception as error:
            raise AssertionError(f'file {i} of {name}: {error!r}') from error
        else:
            results['read'] += 1
            if name == 'zip':  # it has checksums
                for key in ('state_dict', 'ema_state_dict', 'optimizer'):
                    assert not differ(found[key], content[key]), f'file {i}'
    assert min(results.values()) > 5


def refused(path, data, message='truncated, damaged'):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.fixture
def zipped(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def no_loading(monkeypatch):
    """PyTorch would allocate what the file claims."""
    monkeypatch.setattr(torch, 'load', lambda *_, **__: pytest.fail('loaded'))


def test_archive_on_several_disks(zipped, tmp_path):
    """What looks for an archive raises, not what opens it."""
    data = bytearray(zipped)
    data[data.index(b'PK\x06\x07') + 16] = 2  # number of disks
    with pytest.raises(zipfile.BadZipFile, match='span multiple disks'):
        zipfile.is_zipfile(io.BytesIO(data))
    refused(tmp_path / 'disks.pth', data)


def test_number_that_is_cut_off(content, tmp_path):
    """The reader of pickles lets an error of ``struct`` through."""
    data = pickled(content)
    # Four bytes before a text are its length.
    refused(tmp_path / 'cut.pth', data[: data.index(b'state_dict') - 2])


def test_damaged_is_not_called_code(content, tmp_path):
    data = pickled(content)
    at = data.index(b'state_dict') + len('state_dict')
    refused(tmp_path / 'noise.pth', data[:at] + b'\xff' * 99)


def pickled(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_archive_that_claims_more_than_it_holds(zipped, tmp_path, no_loading):
    data = bytearray(zipped)
    at = data.rindex(b'PK\x01\x02') + 24  # size of the last entry
    data[at : at + 4] = struct.pack('<I', 0xFFFFFF00)
    refused(tmp_path / 'size.pth', data)


def test_archive_that_grows(zipped, tmp_path, no_loading):
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(zipped)) as source,
        zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr('archive/data/99', bytes(10_000_000))
    assert len(bomb.getvalue()) < 100_000
    refused(tmp_path / 'bomb.pth', bomb.getvalue())


def test_archive_whose_entries_are_one(tmp_path, no_loading):
    """Many names for the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as target:
        target.writestr('a', bytes(100_000))
        target.filelist *= 1000
    assert len(file.getvalue()) < 200_000
    refused(tmp_path / 'one.pth', file.getvalue())


def test_number_of_weights_out_of_reach(tmp_path):
    data = pickled(dict(state_dict=dict(weight=torch.ones(300))))
    count = b'M' + struct.pack('<H', 300)
    assert count in data
    huge = b'J' + struct.pack('<i', 2**31 - 1)
    refused(tmp_path / 'huge.pth', data.replace(count, huge))


@pytest.mark.parametrize('what', ['header', 'data', 'offsets'])
def test_damaged_safetensors(tmp_path, what):
    offsets = [0, 12] if what == 'offsets' else [0, 8]
    tensor = dict(dtype='F32', shape=[2], data_offsets=offsets)
    header = json.dumps(dict(weight=tensor)).encode()
    if what == 'header':
        header = header[:-3] + b'xxx'
    data = struct.pack('<Q', len(header)) + header + bytes(8)
    refused(tmp_path / 'weights.bin', data[:-4] if what == 'data' else data)


def test_safetensors(tmp_path):
    """As their own library writes them."""
    weights = dict(weight=torch.randn(3, 2), bias=torch.randn(3))
    path = tmp_path / 'weights.safetensors'
    save_file(weights, path)
    found = extract_state_dict(read_checkpoint(path), path)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)
