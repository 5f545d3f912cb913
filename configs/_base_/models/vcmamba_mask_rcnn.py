# Mask R-CNN; the leaf configs set arch and in_channels.
_base_ = 'mask_rcnn.py'
model = dict(
    backbone=dict(
        type='VCMamba',
        arch='b',
        img_size=224,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
