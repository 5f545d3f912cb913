# Table 4, row 3: row 4 without LayerNorm in the mixer.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(
    backbone=dict(
        mixer_cfg=dict(proj='linear', conv_size=3, with_norm=False),
        mdm_cfg=dict(ffn='linear'),
    )
)
