# ImageNet-1K at 224 x 224 with DeiT's augmentation and repeated augmentation.
# imagenet_bs128_224_stock.py is the same with mmpretrain's own transforms.
dataset_type = 'ImageNet'
data_root = 'data/imagenet'
data_preprocessor = dict(
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)  # from BGR

bgr_mean = data_preprocessor['mean'][::-1]
bgr_std = data_preprocessor['std'][::-1]

train_pipeline = [
    dict(type='SeedSample'),
    dict(
        type='ReplaceUnreadable',
        transform=dict(type='LoadRandomResizedCrop', scale=224),
        max_rate=0.01,
    ),
    dict(type='FastRandomFlip', prob=0.5),
    dict(
        type='FastRandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(
            pad_val=[round(x) for x in bgr_mean], interpolation='bicubic'
        ),
    ),
    dict(
        type='FastRandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='FastPackInputs'),
]
# Transforms of mmpretrain say so, for its inferencer builds them in whatever
# scope the process is in.
resize_and_crop = [
    dict(
        type='mmpretrain.ResizeEdge',
        scale=256,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='mmpretrain.CenterCrop', crop_size=224),
]
test_pipeline = [
    # Inferencers look for this name; the tools read as strictly as above.
    dict(type='LoadImageFromFile'),
    *resize_and_crop,
    dict(type='mmpretrain.PackInputs'),
]
tta_model = dict(type='LabelledClsScoreTTA')
tta_pipeline = [
    dict(type='LoadImageStrict'),
    *resize_and_crop,
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='RandomFlip', prob=1.0),
                dict(type='RandomFlip', prob=0.0),
            ],
            [dict(type='PackInputs')],
        ],
    ),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(
        type='SeededSampler',
        sampler=dict(type='RepeatAugSampler', shuffle=True),
    ),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
