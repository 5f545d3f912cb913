# One's own images, data_root/{train,val}/<class>/<image>. Augmented less
# than ImageNet, tested alike.
_base_ = 'imagenet_bs128_224.py'
dataset_type = 'ClassFolders'
data_root = 'data/my_images'

train_pipeline = [
    dict(type='SeedSample'),
    dict(
        type='ReplaceUnreadable',
        transform=dict(
            type='LoadRandomResizedCrop',
            scale=224,
            crop_ratio_range=(0.35, 1.0),
        ),
        max_rate=0.01,
    ),
    dict(type='FastRandomFlip', prob=0.5),
    dict(type='ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(sampler=dict(type='DefaultSampler')),
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix='val',
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
