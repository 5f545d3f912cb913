# A classifier; the leaf configs set arch, drop path and in_channels.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PlainMamba', arch='l1', drop_path_rate=0.2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=192,
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
    # As the release does, which undoes Mamba's initial bias of delta.
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
)
