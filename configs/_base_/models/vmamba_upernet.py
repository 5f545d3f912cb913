# UperNet; the leaf configs set arch, drop path and in_channels.
_base_ = 'upernet.py'
model = dict(
    backbone=dict(
        type='VMamba',
        arch='t',
        out_indices=(0, 1, 2, 3),
        out_norms=True,
        drop_path_rate=0.2,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
