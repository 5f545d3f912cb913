# The 1x schedule of PlainMamba's detectors.
_base_ = 'coco_bs16_adamw_12e.py'
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    # By what names contain: of batch norms some are called otherwise.
    paramwise_cfg=dict(
        custom_keys={
            'level_embed': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
            'bias': dict(decay_mult=0.0),
            '.A_log': dict(decay_mult=0.0),
            '.D': dict(decay_mult=0.0),
            '.direction_B': dict(decay_mult=0.0),
        }
    ),
)
# MMEngine arrives one iteration early.
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 501
