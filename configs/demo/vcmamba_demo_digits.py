# A small classifier on the built-in data set of `make demo`.
_base_ = '../_base_/default_runtime/classification.py'
work_dir = 'work_dirs/demo/classifier'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VCMamba',
        arch=dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 3), num_mdm=2),
        img_size=64,
        layer_scale_init_value=1.0,
    ),
    neck=dict(type='NormGlobalAveragePooling', in_channels=96),
    head=dict(
        type='VCMambaClsHead', num_classes=10, in_channels=96, topk=(1,)
    ),
)

data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)  # from BGR
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,  # what stock tools set needs workers
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ClassFolders',
        data_root='data/demo/classification',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageStrict'),
            dict(type='RandomCrop', crop_size=64, padding=4),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,  # what stock tools set needs workers
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ClassFolders',
        data_root='data/demo/classification',
        data_prefix='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05))
max_epochs = 5
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=50, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=1,
        T_max=max_epochs - 1,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1)
)
randomness = dict(seed=0)
