# Mask R-CNN on small pictures, in every other respect as the config has it.
_base_ = '../../../configs/detection/vcmamba_s_mask-rcnn_fpn_8xb2_1x_coco.py'
data_root = 'data/tiny/'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(8, 16, 16, 32),
            depths=(1, 1, 1, 2),
            num_mdm=1,
        ),
        img_size=64,
        init_cfg=None,
    ),
    neck=dict(in_channels=[8, 16, 16, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
    # Untrained, it is sure of nothing.
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)),
)
train_pipeline = _base_.train_pipeline
train_pipeline[3].scale = (128, 96)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (128, 96)
loader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations.json',
        data_prefix=dict(img='pictures/'),
    ),
)
train_dataloader = dict(**loader)
train_dataloader['dataset'] = dict(loader['dataset'], pipeline=train_pipeline)
val_dataloader = dict(**loader)
val_dataloader['dataset'] = dict(loader['dataset'], pipeline=test_pipeline)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
