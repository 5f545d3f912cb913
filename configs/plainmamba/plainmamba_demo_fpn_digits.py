# A small segmenter on the built-in data set, fine-tuned from the classifier
# that plainmamba_demo_digits.py trains: `make demo BACKBONE=plainmamba`.
_base_ = '../demo/vcmamba_demo_fpn_digits.py'
work_dir = 'work_dirs/demo_plainmamba/segmenter'
checkpoint = 'work_dirs/demo_plainmamba/classifier/epoch_5.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='PlainMamba',
        arch=dict(embed_dims=64, depth=6, stem_convs=1, extra_conv=True),
        img_size=64,
        out_indices=(1, 2, 4, 5),
        out_norms=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    # A pyramid from maps of one size.
    neck=dict(
        _delete_=True,
        type='Feature2Pyramid',
        embed_dim=64,
        norm_cfg=_base_.norm_cfg,
    ),
)
