# Mask R-CNN; the leaf configs set arch, drop path and in_channels.
_base_ = 'mask_rcnn.py'
model = dict(
    backbone=dict(
        type='VMamba',
        arch='t',
        out_indices=(0, 1, 2, 3),
        out_norms=True,
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
