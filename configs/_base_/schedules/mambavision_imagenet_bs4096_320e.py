# A cosine over epochs 0 to 310, whose first 20 the warm-up replaces, then 10
# epochs at the lowest rate.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    # It clips the gradient's norm at 1 by itself.
    optimizer=dict(
        type='Lamb', lr=5e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)
    ),
    # One-dimensional parameters do not decay, all others do, A_log too.
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=2e-4,
        by_epoch=True,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        end=310,
        T_max=310,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=320, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# The average is kept beside the weights; both are validated, the average
# ranked.
custom_hooks = [
    dict(type='RawAndEMAHook', momentum=2e-4, update_buffers=True),
    dict(type='AverageBuffersHook'),
    dict(type='MESAHook', begin=78),
]
auto_scale_lr = dict(base_batch_size=4096)
