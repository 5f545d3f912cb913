# RetinaNet; the leaf configs set arch, drop path and in_channels.
_base_ = 'retinanet.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        type='PlainMambaAdapter',
        arch='l1',
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        norm_cfg=norm_cfg,
    ),
    neck=dict(
        in_channels=[192, 192, 192],
        add_extra_convs='on_output',
        norm_cfg=norm_cfg,
    ),
)
