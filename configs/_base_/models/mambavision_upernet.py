# UperNet; the leaf configs set arch, windows and in_channels.
_base_ = 'upernet.py'
model = dict(
    backbone=dict(
        type='MambaVision',
        arch='t',
        out_indices=(0, 1, 2, 3),
        out_norms=True,
        window_size=(64, 32),
        # As published: the rates of the authors' configs are not read there.
        drop_path_rate=0.2,
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
