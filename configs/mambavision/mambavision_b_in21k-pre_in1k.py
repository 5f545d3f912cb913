# For testing: how these weights were trained was not published.
_base_ = 'mambavision_t_32xb128_in1k.py'
model = dict(
    backbone=dict(arch='b'),
    neck=dict(in_channels=1024),
    head=dict(in_channels=1024),
)
