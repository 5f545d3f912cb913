# Cascade Mask R-CNN; the leaf configs set arch and in_channels.
_base_ = 'cascade_mask_rcnn.py'
model = dict(
    backbone=dict(
        type='MambaVision',
        arch='t',
        out_indices=(0, 1, 2, 3),
        out_norms=True,
        window_size=(112, 56),
        # As published: the rates of the authors' configs are not read there.
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
