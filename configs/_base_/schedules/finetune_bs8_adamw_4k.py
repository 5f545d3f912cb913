optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=200, by_epoch=False),
    dict(
        type='PolyLR',
        power=0.9,
        begin=200,
        end=4000,
        by_epoch=False,
    ),
]
train_cfg = dict(by_epoch=False, max_iters=4000, val_interval=400)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
