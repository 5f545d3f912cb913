# Semantic FPN on the built-in data set of `make demo`, fine-tuned from the
# classifier that vcmamba_demo_digits.py trains.
_base_ = '../_base_/default_runtime/segmentation.py'
work_dir = 'work_dirs/demo/segmenter'
checkpoint = 'work_dirs/demo/classifier/epoch_5.pth'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96),
    ),
    backbone=dict(
        type='VCMamba',
        arch=dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 3), num_mdm=2),
        img_size=64,
        out_indices=(0, 1, 2, 3),
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(
        type='FPN',
        in_channels=[16, 32, 64, 96],
        out_channels=64,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type='FPNHead',
        in_channels=[64, 64, 64, 64],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=32,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Seven of eight pixels are background: without the weights nothing
        # else is predicted for long.
        loss_decode=dict(
            type='CrossEntropyLoss', class_weight=[1.0] + 10 * [5.0]
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    pipeline=pipeline,
    data_root='data/demo/segmentation',
    img_suffix='.png',
    metainfo=dict(
        classes=(
            'background',
            '0',
            '1',
            '2',
            '3',
            '4',
            '5',
            '6',
            '7',
            '8',
            '9',
        ),
        palette=[
            [0, 0, 0],
            [230, 25, 75],
            [60, 180, 75],
            [255, 225, 25],
            [0, 130, 200],
            [245, 130, 48],
            [145, 30, 180],
            [70, 240, 240],
            [240, 50, 230],
            [210, 245, 60],
            [250, 190, 212],
        ],
    ),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,  # what stock tools set needs workers
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=0,
    persistent_workers=False,  # what stock tools set needs workers
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'
        ),
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05))
max_iters = 300
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=30, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=30,
        T_max=max_iters - 30,
        by_epoch=False,
    ),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=60)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=60, max_keep_ckpts=1)
)
randomness = dict(seed=0)
