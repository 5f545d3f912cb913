# A classifier; the leaf configs set arch, drop path and in_channels.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VMamba', arch='t', drop_path_rate=0.2),
    neck=dict(type='NormGlobalAveragePooling', in_channels=768),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        topk=(1, 5),
    ),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
