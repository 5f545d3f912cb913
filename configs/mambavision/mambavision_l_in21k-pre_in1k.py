# To test mambavision_large_21k.pth.tar (CC-BY-NC-SA-4.0: not for
# commercial use). How it was trained was not published.
_base_ = 'mambavision_t_32xb128_in1k.py'
model = dict(
    backbone=dict(arch='l'),
    neck=dict(in_channels=1568),
    head=dict(in_channels=1568),
)
