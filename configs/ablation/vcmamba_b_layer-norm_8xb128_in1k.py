# Table 4, row 4: linear maps where row 5 has convolutions.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(
    backbone=dict(
        mixer_cfg=dict(proj='linear', conv_size=3),
        mdm_cfg=dict(ffn='linear'),
    )
)
