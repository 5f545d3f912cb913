# A small segmenter on the built-in data set, fine-tuned from the classifier
# that vmamba_demo_digits.py trains: `make demo BACKBONE=vmamba`.
_base_ = '../demo/vcmamba_demo_fpn_digits.py'
work_dir = 'work_dirs/demo_vmamba/segmenter'
checkpoint = 'work_dirs/demo_vmamba/classifier/epoch_5.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='VMamba',
        arch=dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), expand=2),
        out_indices=(0, 1, 2, 3),
        out_norms=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    )
)
