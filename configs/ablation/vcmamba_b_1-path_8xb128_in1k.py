# One direction: the row snake.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(backbone=dict(mixer_cfg=dict(num_paths=1)))
