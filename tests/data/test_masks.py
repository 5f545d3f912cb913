"""Masks: their values, in every loop."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from mask_files import (
    LOOPS,
    SEGMENTER,
    check,
    encode,
    photo,
    reader,
    tiff,
)
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image

from vcmamba_mm import CheckMasksHook
from vcmamba_mm.data import masks
from vcmamba_mm.data.masks import MaskError
from vcmamba_mm.training import check_masks

pytest.importorskip('mmseg')


@pytest.fixture
def read(tmp_path):
    return reader(tmp_path)


# --------------------------------------------------------------------- values

FORMATS = {
    'uint16 PNG': lambda v: encode(np.array(v, np.uint16)),
    **{
        f'{name} TIFF': lambda v, name=name: tiff(np.array(v, name))
        for name in ('uint16', 'int16', 'int32', 'uint32', 'f4')
    },
}


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('format', FORMATS)
def test_values_are_those_of_the_file(read, format, loop):
    """256 is not 0, 257 not 1, 65535 not 255, whatever the depth."""
    write = FORMATS[format]
    good = [[0, 1], [255, 1]]
    assert check(read(write(good)), loop) == good
    for value in (2, 254, 256, 257, 32767, 65535, -1, -32768):
        if value < 0 and format.startswith('uint'):
            continue
        if value > 32767 and format == 'int16 TIFF':
            continue
        message = rf'mask.png holds {value}, the classes are 0 to 1, and 255'
        with pytest.raises(MaskError, match=message):
            check(read(write([[0, 1], [1, value]])), loop)


def test_signed_bytes(read):
    good = np.array([[0, 1], [1, 0]], np.int8)
    assert check(read(tiff(good))) == good.tolist()
    with pytest.raises(MaskError, match='mask.png holds -1, the classes are'):
        check(read(tiff(good - 1)))


@pytest.mark.parametrize(
    'value, named',
    [
        (np.nan, 'nan'),
        (np.inf, 'inf'),
        (0.5, '0.5'),
        (2.0**31, '2147483648'),
    ],
)
def test_values_that_are_no_numbers_of_classes(read, value, named):
    mask = np.array([[0, value], [1, 1]], np.float32)
    message = f'holds {named}, the classes are whole numbers from 0 on'
    with pytest.raises(MaskError, match=message):
        read(tiff(mask))


def test_large_numbers_without_a_sign(read):
    with pytest.raises(MaskError, match='holds 4294967295, the classes are w'):
        read(tiff(np.array([[2**32 - 1]], np.uint32)))


def test_more_than_255_classes(read):
    mask = np.array([[0, 299], [256, 1]], np.uint16)
    assert check(read(encode(mask)), num_classes=300, ignore_index=300) == (
        mask.tolist()
    )
    with pytest.raises(MaskError, match='255 is a class of 300'):
        check(read(encode(mask)), num_classes=300)


def test_more_than_255_classes_are_augmented(read):
    mask = np.array([[0, 299], [256, 1]], np.uint16).repeat(48, 0)
    content = encode(mask.repeat(60, 1))
    results = dict(
        img=np.zeros((96, 120, 3), np.uint8),
        gt_seg_map=masks.read_mask(content, 'mask.png'),
        seg_fields=['gt_seg_map'],
        img_shape=(96, 120),
        ori_shape=(96, 120),
    )
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/masks_512x512.py')
    resize = cfg.train_pipeline[2]
    resize.ratio_range = (0.5, 1.0)  # so that the crop has all of them
    for step in cfg.train_pipeline[2:]:
        results = TRANSFORMS.build(step)(results)
    values = results['data_samples'].gt_sem_seg.data.unique().tolist()
    assert values == [0, 1, 256, 299]


@pytest.mark.parametrize('loop', LOOPS)
def test_zero_that_is_no_class(read, loop):
    """As mmseg's LoadAnnotations numbers bytes; the message has the file's."""
    values = np.array([[0, 1], [150, 255]], np.uint8)
    for mask in (values, values.astype(np.uint16)):
        labels = check(read(encode(mask), reduce_zero_label=True), loop, 150)
        assert labels == [[255, 0], [149, 255]]
    for value in (151, 254, 256, 257, 65535):
        values = np.array([[0, 1], [2, value]], np.uint16)
        with pytest.raises(MaskError, match=f'holds {value}, the classes are'):
            check(read(encode(values), reduce_zero_label=True), loop, 150)


def test_stock_numbering_of_bytes(read):
    """All bytes, with zero reduced and classes chosen, against mmseg's."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    label_map = {0: 255, 1: 2, 2: 0, 3: 1}
    for options in (
        dict(),
        dict(reduce_zero_label=True),
        dict(label_map=label_map),
        dict(reduce_zero_label=True, label_map=label_map),
    ):
        ours = read(encode(every), **options)
        stock = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations'))
        path = ours.seg_map_path
        results = dict(
            dict(reduce_zero_label=False, label_map=None, seg_fields=[]),
            seg_map_path=path,
            **options,
        )
        expected = stock(results)['gt_seg_map']
        assert np.array_equal(ours.gt_sem_seg.data[0].numpy(), expected)


def png(bits, rows, colour_type=0):
    """A PNG (W3C, 2003) of packed rows."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data))
            + name
            + data
            + struct.pack('>I', zlib.crc32(name + data))
        )

    width = 8 // bits * len(rows[0])
    header = struct.pack(
        '>IIBBBBB', width, len(rows), bits, colour_type, 0, 0, 0
    )
    data = zlib.compress(b''.join(b'\0' + bytes(row) for row in rows))
    palette = b''
    if colour_type == 3:
        palette = chunk(b'PLTE', bytes(range(3 * 2**bits)))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + palette
        + chunk(b'IDAT', data)
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize(
    'colour_type, backend', [(0, 'pillow'), (0, 'cv2'), (3, 'pillow')]
)
@pytest.mark.parametrize(
    'bits, packed, stored',
    [
        (1, 0b01100010, [0, 1, 1, 0, 0, 0, 1, 0]),
        (2, 0b00011011, [0, 1, 2, 3]),
        (4, 0x1F, [1, 15]),
    ],
)
def test_few_bits_are_not_stretched(
    read, bits, packed, stored, colour_type, backend
):
    mask = png(bits, [[packed]], colour_type)
    labels = check(read(mask, imdecode_backend=backend), num_classes=16)
    assert labels == [stored]


def test_palettes_are_numbers(read):
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    picture = Image.fromarray(labels, 'P')
    picture.putpalette(np.random.default_rng(0).bytes(768))
    content = io.BytesIO()
    picture.save(content, 'PNG')
    assert check(read(content.getvalue()), num_classes=3) == labels.tolist()


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
def test_masks_in_colours(read, mode):
    content = encode(np.zeros((2, 2), np.uint8), mode=mode)
    with pytest.raises(MaskError, match='mask.png is an image in colours'):
        read(content)


def test_jpegs_are_no_masks(read):
    with pytest.raises(MaskError, match='is a JPEG, which changes the num'):
        read(encode(np.zeros((8, 8), np.uint8), 'JPEG'))


@pytest.mark.parametrize(
    'content',
    [
        b'P5 2 2 150 ' + bytes([0, 1, 2, 150]),  # Pillow: 0, 2, 3, 255
        b'P4 8 1 ' + bytes([0b01100010]),
        encode(np.array([[0, 300]], np.uint16), 'PPM'),
    ],
)
@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_numbers_that_decoders_stretch(read, content, backend):
    with pytest.raises(MaskError, match='mask.png is a PGM or PBM, whose num'):
        read(content, imdecode_backend=backend)
    with pytest.raises(MaskError, match='mask.png is an image in colours'):
        read(b'P6 1 1 255 ' + bytes(3), imdecode_backend=backend)


def test_what_the_metric_ignores_counts_in_testing(read):
    sample = read(encode(np.array([[0, 11]], np.uint8)))
    options = dict(num_classes=2, ignore_index=11)
    check(sample, 'train', **options)
    check(sample, 'val', metric=11, **options)
    with pytest.raises(MaskError, match='holds 11, .* and 255 is ignored'):
        check(sample, 'val', metric=255, **options)


def test_a_test_without_masks(read):
    sample = read(encode(np.array([[0, 7]], np.uint8)))
    del sample.gt_sem_seg
    head = SimpleNamespace(num_classes=2, ignore_index=255)
    runner = SimpleNamespace(
        model=SimpleNamespace(decode_head=head),
        test_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=[])),
    )
    CheckMasksHook().before_test_iter(runner, 0, dict(data_samples=[sample]))


@pytest.mark.parametrize('loop', LOOPS)
def test_other_models_and_batches(read, loop):
    sample = read(encode(np.array([[0, 7]], np.uint8)))
    hook = CheckMasksHook()
    evaluator = SimpleNamespace(metrics=[])
    loops = {
        f'{other}_loop': SimpleNamespace(evaluator=evaluator)
        for other in LOOPS
    }
    look = getattr(hook, f'before_{loop}_iter')
    student = SimpleNamespace(model=SimpleNamespace(student=None), **loops)
    look(student, 0, dict(data_samples=[sample]))
    head = SimpleNamespace(num_classes=2, ignore_index=255)
    model = SimpleNamespace(decode_head=head)
    segmenter = SimpleNamespace(model=model, **loops)
    for batch in (dict(inputs=[]), dict(data_samples=[])):
        look(segmenter, 0, batch)
    with pytest.raises(MaskError, match='mask.png holds 7'):
        look(segmenter, 0, dict(data_samples=[sample]))


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('values, told', [((0, 255), 1), ((0, 1, 255), 0)])
def test_masks_without_a_class_are_told_of(
    read, values, told, loop, monkeypatch
):
    lines = []
    monkeypatch.setattr(
        check_masks, 'print_log', lambda *args: lines.append(args)
    )
    sample = read(encode(np.array([values], np.uint8)))
    head = SimpleNamespace(num_classes=2, ignore_index=255)
    runner = SimpleNamespace(model=SimpleNamespace(decode_head=head))
    evaluator = SimpleNamespace(metrics=[])
    runner.val_loop = runner.test_loop = SimpleNamespace(evaluator=evaluator)
    hook = CheckMasksHook()
    for i in range(2 * hook.GRACE):
        getattr(hook, f'before_{loop}_iter')(
            runner, i, dict(data_samples=[[sample]])
        )
    assert len(lines) == told
    assert all('nothing but 0 and 255' in line for line, *_ in lines)


# ------------------------------------------------------------- by the tools


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    cfg = Config.fromfile(SEGMENTER)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    path = tmp_path_factory.mktemp('checkpoint') / 'segmenter.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), path)
    return path


@pytest.mark.parametrize('workers, value', [(0, 257), (1, 160)])
def test_a_test_on_other_classes(
    run_here, checkpoint, tmp_path, workers, value
):
    """ADE20K's are 1 to 150; the right ones of a mask would be 100 %."""
    for folder in ('images', 'annotations'):
        (tmp_path / folder / 'validation').mkdir(parents=True)
    picture, _ = photo(64, 96)
    (tmp_path / 'images/validation/0.jpg').write_bytes(picture)
    mask = np.ones((64, 96), np.uint16)
    mask[:, 40:] = value
    path = tmp_path / 'annotations/validation/0.png'
    path.write_bytes(encode(mask))
    error = run_here(
        'test.py',
        SEGMENTER,
        checkpoint,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'test_dataloader.dataset.data_root={tmp_path}',
        f'test_dataloader.num_workers={workers}',
        'test_dataloader.dataset.pipeline.1.scale=(96,64)',
    )
    assert f'error: mask {path} holds {value}, the classes are 1 to ' in error
