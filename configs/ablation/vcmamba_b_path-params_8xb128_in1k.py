# delta, B and C of the token visited: the paper's equation 4.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(backbone=dict(mixer_cfg=dict(param_order='path')))
