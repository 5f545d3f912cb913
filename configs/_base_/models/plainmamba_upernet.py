# UperNet on four maps of one size; the leaf configs set arch, drop path,
# out_indices and in_channels.
_base_ = 'upernet.py'
model = dict(
    backbone=dict(
        type='PlainMamba',
        arch='l1',
        out_indices=(5, 11, 17, 23),
        out_norms=True,
        drop_path_rate=0.1,
        norm_cfg=_base_.norm_cfg,
    ),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
    auxiliary_head=dict(in_channels=192, in_index=3),
)
