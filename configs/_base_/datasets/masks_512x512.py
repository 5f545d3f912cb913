# One's own pictures and masks, data_root/{images,annotations}/{train,val}/,
# <name>.jpg and <name>.png. A mask's values are the numbers of the classes
# from 0 on; 255 is not trained and not counted. The leaf configs name the
# classes in metainfo.
data_root = 'data/my_masks'
crop_size = (512, 512)
train_pipeline = [
    dict(type='SeedSample'),
    dict(
        type='ReplaceUnreadable',
        transform=[
            dict(type='LoadImageStrict'),
            dict(type='LoadMaskStrict'),
        ],
        max_rate=0.01,
    ),
    dict(
        type='RandomResize',
        scale=(2048, 512),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageStrict'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # After the resizing: predictions are compared at the original size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(
        type='SeededSampler',
        sampler=dict(type='InfiniteSampler', shuffle=True),
    ),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(
            img_path='images/train', seg_map_path='annotations/train'
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(
            img_path='images/val', seg_map_path='annotations/val'
        ),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
