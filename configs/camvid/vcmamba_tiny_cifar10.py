# The classifier that the CamVid example is fine-tuned from, on CIFAR-10 as
# folders, data/cifar10_small/{train,test}/<class>/<image>.
_base_ = '../_base_/default_runtime/classification.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VCMamba',
        arch=dict(
            embed_dims=(24, 48, 96, 128), depths=(1, 1, 2, 3), num_mdm=2
        ),
        img_size=64,
        layer_scale_init_value=1.0,
    ),
    neck=dict(type='NormGlobalAveragePooling', in_channels=128),
    head=dict(
        type='VCMambaClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        topk=(1,),
    ),
)

data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)  # from BGR
resize = dict(type='mmpretrain.Resize', scale=64, interpolation='bilinear')
dataset = dict(type='ClassFolders', data_root='data/cifar10_small')
train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    persistent_workers=False,  # what stock tools set needs workers
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageStrict'),
            dict(
                type='RandomCrop',
                crop_size=32,
                padding=4,
                padding_mode='reflect',
            ),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            resize,
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,  # what stock tools set needs workers
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix='test',
        pipeline=[
            # Inferencers look for this name.
            dict(type='LoadImageFromFile'),
            resize,
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
    ),
)
max_epochs = 20
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=100, by_epoch=False),
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
    logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=1)
)
randomness = dict(seed=0)
