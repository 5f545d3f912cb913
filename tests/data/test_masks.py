"""Masks: their values, sizes and orientations, in every loop."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image, ImageOps

from vcmamba_mm import CheckMasksHook
from vcmamba_mm.data import masks
from vcmamba_mm.data.archives import write_tar
from vcmamba_mm.data.masks import MaskError
from vcmamba_mm.data.reading import AnnotationError
from vcmamba_mm.training import check_masks

pytest.importorskip('mmseg')

SEGMENTER = CONFIGS / 'tiny_segmenter.py'
LOOPS = ('train', 'val', 'test')
ORIENTATION = 0x0112


def tiff(labels):
    """Write a TIFF (revision 6.0) of one channel in one strip."""
    labels = np.asarray(labels)
    height, width = labels.shape
    kinds = dict(u=1, i=2, f=3)
    fields = {
        256: width,
        257: height,
        258: 8 * labels.itemsize,
        259: 1,  # not compressed
        262: 1,  # 0 is black
        273: 8,
        277: 1,
        278: height,
        279: labels.nbytes,
        339: kinds[labels.dtype.kind],
    }
    pixels = labels.astype(labels.dtype.newbyteorder('<')).tobytes()
    pixels += bytes(len(pixels) % 2)
    entries = b''.join(
        struct.pack('<HHII', tag, 4, 1, value) for tag, value in fields.items()
    )
    return (
        struct.pack('<2sHI', b'II', 42, 8 + len(pixels))
        + pixels
        + struct.pack('<H', len(fields))
        + entries
        + bytes(4)
    )


def encode(labels, format='PNG', mode=None, **kwargs):
    picture = Image.fromarray(np.asarray(labels))
    content = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(
        content, format, **kwargs
    )
    return content.getvalue()


@pytest.fixture
def read(tmp_path):
    """Send a mask, and its picture, through the transforms of a config."""
    init_default_scope('mmseg')

    def read(
        mask,
        picture=None,
        reduce_zero_label=False,
        label_map=None,
        color_type='color',
        **kwargs,
    ):
        (tmp_path / 'mask.png').write_bytes(mask)
        results = dict(
            seg_map_path=str(tmp_path / 'mask.png'),
            reduce_zero_label=reduce_zero_label,
            label_map=label_map,
            seg_fields=[],
            img=np.zeros((2, 2, 3), np.uint8),
        )
        steps = [dict(type='LoadMaskStrict', **kwargs)]
        if picture is not None:
            (tmp_path / 'picture').write_bytes(picture)
            results['img_path'] = str(tmp_path / 'picture')
            loading = dict(type='LoadImageStrict', color_type=color_type)
            steps.insert(0, loading)
        for step in [*steps, dict(type='PackSegInputs')]:
            results = TRANSFORMS.build(step)(results)
        return results['data_samples']

    return read


def check(sample, loop='train', num_classes=2, ignore_index=255, metric=255):
    head = SimpleNamespace(num_classes=num_classes, ignore_index=ignore_index)
    runner = SimpleNamespace(model=SimpleNamespace(decode_head=head))
    metrics = [SimpleNamespace(ignore_index=metric), SimpleNamespace()]
    evaluator = SimpleNamespace(metrics=metrics)
    for other in LOOPS:
        setattr(runner, f'{other}_loop', SimpleNamespace(evaluator=evaluator))
    hook = CheckMasksHook()
    batch = dict(data_samples=[sample])
    getattr(hook, f'before_{loop}_iter')(runner, 0, batch)
    return sample.gt_sem_seg.data[0].tolist()


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
    with pytest.raises(MaskError, match='mask.png is a picture in colours'):
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
    with pytest.raises(MaskError, match='mask.png is a picture in colours'):
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


# ------------------------------------------------------- sizes, orientations


def photo(height, width, orientation=1, format='JPEG'):
    """A picture whose pixels differ by quarter, and a mask of the quarters."""
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2, width // 2 :] = 1
    labels[height // 2 :, : width // 2] = 2
    labels[height // 2 :, width // 2 :] = 3
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = io.BytesIO()
    Image.fromarray(60 * labels).convert('RGB').save(
        content, format, exif=exif
    )
    return content.getvalue(), labels


def turned(labels, orientation):
    """As Pillow turns it."""
    picture = Image.fromarray(labels)
    picture.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


ONE_WAY = (2, 3, 4)


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_pixels_of_picture_and_mask_agree(
    read, tmp_path, format, orientation, color_type
):
    """Or nothing is read: whichever way the mask was drawn."""
    picture, stored = photo(32, 48, orientation, format)
    shown = turned(stored, orientation)
    ignored = color_type != 'color'
    results = TRANSFORMS.build(
        dict(type='LoadImageStrict', color_type=color_type)
    )(dict(img_path=write(tmp_path, picture)))
    image = np.rint(results['img'][..., 0] / 60)
    expected = stored if ignored else shown
    assert (image == expected).mean() > 0.95  # but for JPEG's edges
    for mask, as_shown in ((stored, False), (shown, True)):
        options = dict(color_type=color_type, as_shown=as_shown)
        if mask.shape != expected.shape:
            with pytest.raises(MaskError, match='mask .* is .* pixels, pict'):
                read(encode(mask), picture, **options)
            continue
        if orientation in ONE_WAY and not ignored and not as_shown:
            with pytest.raises(MaskError, match='set as_shown=True in Load'):
                read(encode(mask), picture, **options)
            continue
        if np.array_equal(mask, expected):
            labels = check(read(encode(mask), picture, **options), 'val', 4)
            assert labels == expected.tolist()


def write(folder, content):
    (folder / 'picture').write_bytes(content)
    return str(folder / 'picture')


def test_an_orientation_that_explains_the_sizes(read):
    picture, stored = photo(32, 48, 6)
    with pytest.raises(MaskError) as caught:
        read(encode(stored), picture, as_shown=True)
    message = str(caught.value)
    for words in (
        'mask.png is 48 x 32 pixels, picture ',
        '/picture 32 x 48, turned by its Exif orientation 6',
        "color_type='color_ignore_orientation'",
    ):
        assert words in message
    assert '\n' not in message


def test_a_square_does_not_tell_its_orientation(read):
    picture, stored = photo(32, 32, 6)
    with pytest.raises(MaskError, match='Exif orientation 6, and the size'):
        read(encode(stored), picture)
    labels = check(read(encode(stored), picture, as_shown=True), num_classes=4)
    assert labels == stored.tolist()


def test_a_mask_with_an_orientation(read):
    _, stored = photo(32, 48)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    with pytest.raises(MaskError, match=r'to be turned \(Exif orientation 3'):
        read(encode(stored, exif=exif))


@pytest.mark.parametrize(
    'size', [(30, 48), (32, 46), (32, 40), (48, 32), (16, 16)]
)
def test_masks_of_something_else(read, size):
    picture, _ = photo(32, 48)
    message = (
        rf'mask.png is {size[1]} x {size[0]} pixels, picture .* 48 x 32: '
        'they must show the same'
    )
    with pytest.raises(MaskError, match=message):
        read(encode(np.zeros(size, np.uint8)), picture)


@pytest.mark.parametrize('factor', [2, 4])
def test_smaller_and_larger_masks_are_scaled(read, factor):
    """As Pillow scales to the nearest, for whole factors."""
    picture, _ = photo(32, 48)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 4, (32 // factor, 48 // factor), dtype=np.uint8)
    expected = small.repeat(factor, 0).repeat(factor, 1)
    for loop in LOOPS:
        assert check(read(encode(small), picture), loop, 4) == (
            expected.tolist()
        )
    large = expected.repeat(factor, 0).repeat(factor, 1)
    assert check(read(encode(large), picture), num_classes=4) == (
        expected.tolist()
    )


def test_scaled_up_to_a_pixel(read):
    picture, _ = photo(101, 77)
    for size in ((50, 38), (51, 39), (51, 38), (303, 231)):
        sample = read(encode(np.ones(size, np.uint8)), picture)
        assert sample.gt_sem_seg.data.shape == (1, 101, 77)


@pytest.mark.parametrize('where', ['folder', 'prefix', 'backend_args'])
def test_the_run_stops_wherever_the_files_are(tmp_path, where):
    """Nothing takes the place of a mask that does not fit."""
    init_default_scope('mmseg')
    picture, stored = photo(32, 48, 3)
    write_tar(
        iter([('a.jpg', picture), ('a.png', encode(stored))]), tmp_path / 'tar'
    )
    root, options = f'{tmp_path}/tar', {}
    if where == 'folder':
        root = str(tmp_path)
        (tmp_path / 'a.jpg').write_bytes(picture)
        (tmp_path / 'a.png').write_bytes(encode(stored))
    elif where == 'prefix':
        root = f'tar://{root}'
    else:
        options = dict(backend_args=dict(backend='tar'))

    def results(as_shown):
        steps = [
            dict(type='LoadImageStrict', **options),
            dict(type='LoadMaskStrict', as_shown=as_shown, **options),
        ]
        return TRANSFORMS.build(
            dict(type='ReplaceUnreadable', transform=steps)
        )(dict(img_path=f'{root}/a.jpg', seg_map_path=f'{root}/a.png'))

    assert np.array_equal(results(True)['gt_seg_map'], stored)
    with pytest.raises(MaskError, match='a.jpg is turned by its Exif orient'):
        results(False)


@pytest.mark.parametrize('size', [(32, 48), (48, 32), (48, 48), (1, 1)])
def test_boxes_on_the_stored_pixels(tmp_path, size):
    """COCO's files have the height and width that boxes are drawn on."""
    picture, stored = photo(32, 48, 6)
    results = dict(img_path=write(tmp_path, picture))
    results['height'], results['width'] = size
    loading = TRANSFORMS.build(dict(type='LoadImageStrict'))
    if size != stored.shape:
        assert loading(results)['img'].shape == (48, 32, 3)
        return
    with pytest.raises(AnnotationError, match="set color_type='color_ignore"):
        loading(results)
    loading.color_type = 'color_ignore_orientation'
    assert loading(results)['img'].shape == (32, 48, 3)


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
