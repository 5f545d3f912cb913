_base_ = '../../../configs/vcmamba_s_fpn_8xb4_40k_ade20k_512x512.py'
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(16, 32, 48, 64),
            depths=(1, 1, 2, 4),
            num_mdm=2,
        )
    ),
    neck=dict(in_channels=[16, 32, 48, 64], out_channels=16),
    decode_head=dict(
        in_channels=[16, 16, 16, 16], channels=16, num_classes=150
    ),
    test_cfg=dict(crop_size=(64, 64), stride=(40, 40)),
)
loader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='data/tiny'),
)
train_dataloader = dict(**loader, batch_size=2)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type='PolyLR', power=0.9, end=2, by_epoch=False)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
