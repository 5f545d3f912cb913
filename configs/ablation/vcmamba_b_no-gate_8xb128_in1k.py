# Table 4, row 2: row 1 without the gate.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(64, 128, 320, 512),
            depths=(4, 4, 12, 10),
            num_mdm=4,
        ),
        mixer_cfg=dict(proj='linear', with_norm=False),
        mdm_cfg=dict(ffn=None, norm_cfg=dict(type='mmpretrain.LN2d')),
    )
)
