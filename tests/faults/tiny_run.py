# The training recipe on tiny pictures: everything that a checkpoint has to
# carry (averages, schedules, repeated augmentation, Mixup, stochastic depth),
# a checkpoint every few iterations, in the middle of epochs too.
_base_ = '../../configs/vcmamba_s_8xb128_in1k.py'
num_classes = 4
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(8, 16, 16, 16),
            depths=(1, 1, 1, 2),
            num_mdm=1,
        ),
        img_size=32,
    ),
    neck=dict(in_channels=16),
    head=dict(num_classes=num_classes, in_channels=16, topk=(1,)),
)
data_preprocessor = dict(num_classes=num_classes)
loader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/tiny',
        data_prefix='train',
        pipeline=[
            dict(type='SeedSample'),
            dict(type='LoadImageStrict'),
            dict(type='PackInputs'),
        ],
    ),
)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(topk=(1,))
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=2,
        end=30,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=0.1,
        update_buffers=True,
        evaluate_on_origin=True,
        evaluate_on_ema=False,
        priority='ABOVE_NORMAL',
    )
]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=3),
)
