# Table 4, row 5: no norms after the mixer's projections.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(backbone=dict(mixer_cfg=dict(proj='conv')))
