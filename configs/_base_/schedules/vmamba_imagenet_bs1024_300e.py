# lr = 5e-4 * 1024 / 512
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    optimizer=dict(
        type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)
    ),
    # One-dimensional parameters do not decay, all others do, the bias of
    # delta and A_log among them.
    paramwise_cfg=dict(flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# The average is kept beside the weights; both are validated, the average
# ranked.
custom_hooks = [dict(type='RawAndEMAHook', momentum=1e-4)]
auto_scale_lr = dict(base_batch_size=1024)
