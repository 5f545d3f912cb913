_base_ = [
    '../_base_/models/mambavision_upernet.py',
    '../_base_/datasets/ade20k_640x640_unpadded.py',
    '../_base_/schedules/swin_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# Weights under CC-BY-NC-SA-4.0: not for commercial use.
checkpoint = 'checkpoints/mambavision_L3_21k_740m_512.pth.tar'
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        arch='l3',
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=8e-05, weight_decay=0.05))
train_dataloader = dict(batch_size=1)
train_cfg = dict(val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000))
