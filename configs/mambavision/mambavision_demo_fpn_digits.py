# A small segmenter on the built-in data set, fine-tuned from the classifier
# that mambavision_demo_digits.py trains: `make demo BACKBONE=mambavision`.
_base_ = '../demo/vcmamba_demo_fpn_digits.py'
work_dir = 'work_dirs/demo_mambavision/segmenter'
checkpoint = 'work_dirs/demo_mambavision/classifier/epoch_5.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MambaVision',
        arch=dict(
            embed_dims=(16, 32, 64, 96),
            depths=(1, 1, 3, 2),
            stem_dims=16,
            num_heads=(4, 6),
            layer_scale=None,
        ),
        window_size='map',
        out_indices=(0, 1, 2, 3),
        out_norms=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    )
)
