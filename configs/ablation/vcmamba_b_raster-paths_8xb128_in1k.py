# Every row from left to right, every column downwards; and both reversed.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(backbone=dict(mixer_cfg=dict(snake=False)))
