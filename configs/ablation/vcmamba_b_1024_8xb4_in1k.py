# 1024 x 1024 pixels, in training and testing. Take --auto-scale-lr.
_base_ = '../vcmamba_b_8xb128_in1k.py'
size = 1024
model = dict(backbone=dict(img_size=size))

train_pipeline = _base_.train_pipeline
train_pipeline[1].transform.scale = size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = size * 256 // 224
test_pipeline[2].crop_size = size
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].scale = size * 256 // 224
tta_pipeline[2].crop_size = size
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
