# A classifier that learns from its own average, too; the leaf configs set what
# differs between the variants.
model = dict(
    type='MESAImageClassifier',
    mesa_weight=25.0,
    backbone=dict(type='MambaVision', arch='t', drop_path_rate=0.2),
    neck=dict(
        type='NormGlobalAveragePooling',
        in_channels=640,
        norm_cfg=dict(type='BN'),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=640,
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
