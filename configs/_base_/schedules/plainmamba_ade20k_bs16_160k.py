# As Swin Transformer's, but the warm-up multiplies what falls from the start.
_base_ = 'swin_ade20k_bs16_160k.py'
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'final_norm': dict(decay_mult=1.0),  # beats 'norm'
            '.pos_embed': dict(decay_mult=0.0),
            '.A_log': dict(decay_mult=0.0),
            '.D': dict(decay_mult=0.0),
            '.direction_B': dict(decay_mult=0.0),
        }
    )
)
# MMEngine arrives one iteration early.
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501
    ),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        begin=0,
        end=160001,
        by_epoch=False,
    ),
]
train_cfg = dict(val_interval=8000)
