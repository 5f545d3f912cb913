# Two directions: the row snake and its reverse.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(backbone=dict(mixer_cfg=dict(num_paths=2)))
