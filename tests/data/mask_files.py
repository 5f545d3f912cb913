"""Masks in files, and how they are read and checked."""

import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CONFIGS
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image

from vcmamba_mm import CheckMasksHook

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


def reader(folder):
    """A function that sends a mask, and its picture, through a pipeline."""
    init_default_scope('mmseg')

    def read(
        mask,
        picture=None,
        reduce_zero_label=False,
        label_map=None,
        color_type='color',
        **kwargs,
    ):
        (folder / 'mask.png').write_bytes(mask)
        results = dict(
            seg_map_path=str(folder / 'mask.png'),
            reduce_zero_label=reduce_zero_label,
            label_map=label_map,
            seg_fields=[],
            img=np.zeros((2, 2, 3), np.uint8),
        )
        steps = [dict(type='LoadMaskStrict', **kwargs)]
        if picture is not None:
            (folder / 'picture').write_bytes(picture)
            results['img_path'] = str(folder / 'picture')
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
