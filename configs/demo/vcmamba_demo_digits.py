# A small VCMamba classifier on the built-in data set; see `make demo`.
custom_imports = dict(
    imports=['vcmamba_mm', 'vcmamba_mm.classification'],
    allow_failed_imports=False)
default_scope = 'mmpretrain'
work_dir = 'work_dirs/demo/classifier'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VCMamba',
        arch=dict(
            embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 3), num_mdm=2),
        img_size=64,
        layer_scale_init_value=1.),
    neck=dict(type='NormGlobalAveragePooling', in_channels=96),
    head=dict(type='VCMambaClsHead', num_classes=10, in_channels=96))
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo/classification/train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=64, padding=4),
            dict(type='PackInputs')
        ]))
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo/classification/val',
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='PackInputs')]))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)

max_epochs = 6
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05))
param_scheduler = dict(
    type='OneCycleLR',
    eta_max=3e-3,
    by_epoch=True,
    total_steps=max_epochs,
    convert_to_iter_based=True)

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
