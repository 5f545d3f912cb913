# Stage 4 of convolutional blocks only: eight, for 30.27 M parameters; with
# the six that the base has, it would be 26.01 M against 30.94 M.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(64, 128, 320, 512),
            depths=(4, 4, 12, 8),
            num_mdm=0,
        ),
    )
)
