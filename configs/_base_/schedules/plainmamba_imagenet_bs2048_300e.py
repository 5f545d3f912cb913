# lr = 5e-4 * 2048 / 512
optim_wrapper = dict(
    optimizer=dict(
        type='AdamW', lr=2e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)
    ),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            '.A_log': dict(decay_mult=0.0),
            '.D': dict(decay_mult=0.0),
            '.direction_B': dict(decay_mult=0.0),
            # MMCV 1 asked whether a convolution is depthwise before it asked
            # for biases.
            'mixer.dwconv.bias': dict(decay_mult=1.0),
        },
    ),
    clip_grad=dict(max_norm=1.0),
)
# A cosine over all epochs, which the warm-up multiplies.
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
        eta_min_ratio=1e-2,
        by_epoch=True,
        end=300,
        T_max=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=300, val_interval=5)
val_cfg = dict()
test_cfg = dict()
# The average is kept beside the weights; both are validated.
custom_hooks = [
    dict(type='RawAndEMAHook', momentum=1e-4),
    dict(type='AverageBuffersHook'),
]
auto_scale_lr = dict(base_batch_size=2048)
