# To test mambavision_L3_21k_740m_256.pth.tar (CC-BY-NC-SA-4.0: not for
# commercial use). How it was trained was not published.
_base_ = 'mambavision_t_32xb128_in1k.py'
model = dict(
    backbone=dict(arch='l3', window_size=(16, 8)),
    neck=dict(in_channels=2048),
    head=dict(in_channels=2048),
)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 256
test_pipeline[2].crop_size = 256
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
