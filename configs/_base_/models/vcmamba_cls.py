# A classifier with one head; the leaf configs set arch and in_channels.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VCMamba',
        arch='b',
        img_size=224,
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(type='NormGlobalAveragePooling', in_channels=512),
    head=dict(
        type='VCMambaClsHead',
        num_classes=1000,
        in_channels=512,
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
