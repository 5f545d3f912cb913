# Semantic FPN on CamVid, data/camvid_small/{images,annotations}/{train,val}/,
# fine-tuned from the classifier that vcmamba_tiny_cifar10.py trains.
_base_ = [
    '../_base_/models/vcmamba_fpn.py',
    '../_base_/datasets/masks_512x512.py',
    '../_base_/default_runtime/segmentation.py',
]
checkpoint = 'work_dirs/vcmamba_tiny_cifar10/epoch_20.pth'
# 11, void, is not trained and not counted.
classes = (
    'sky',
    'building',
    'pole',
    'road',
    'pavement',
    'tree',
    'sign',
    'fence',
    'car',
    'pedestrian',
    'bicyclist',
)
palette = [
    [70, 130, 180],
    [70, 70, 70],
    [153, 153, 153],
    [128, 64, 128],
    [244, 35, 232],
    [107, 142, 35],
    [220, 220, 0],
    [190, 153, 153],
    [0, 0, 142],
    [220, 20, 60],
    [119, 11, 32],
]
ignore_index = len(classes)

norm_cfg = dict(type='BN', requires_grad=True)
crop_size = (224, 224)
model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=ignore_index),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(24, 48, 96, 128),
            depths=(1, 1, 2, 3),
            num_mdm=2,
        ),
        img_size=64,
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(
        in_channels=[24, 48, 96, 128], out_channels=64, norm_cfg=norm_cfg
    ),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=32,
        num_classes=len(classes),
        ignore_index=ignore_index,
        norm_cfg=norm_cfg,
    ),
)

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='LoadImageStrict'),
    dict(type='LoadMaskStrict'),
    dict(
        type='RandomResize',
        scale=(480, 360),
        ratio_range=(0.75, 1.5),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    # Inferencers look for this name.
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
loader = dict(num_workers=0, persistent_workers=False)
dataset = dict(
    data_root='data/camvid_small',
    metainfo=dict(classes=classes, palette=palette),
)
train_dataloader = dict(
    **loader,
    batch_size=4,
    dataset=dict(**dataset, pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    batch_size=5,
    dataset=dict(**dataset, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=ignore_index)
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
    ),
)
max_iters = 400
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=30, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=30,
        T_max=max_iters - 30,
        by_epoch=False,
    ),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=50)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=200, max_keep_ckpts=1)
)
randomness = dict(seed=0)
