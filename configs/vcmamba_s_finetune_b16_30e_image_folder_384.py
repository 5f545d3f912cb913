# Pictures of 384 x 384 pixels; the position embedding is resized on loading.
_base_ = 'vcmamba_s_finetune_b64_30e_image_folder.py'
model = dict(backbone=dict(img_size=384))

train_pipeline = _base_.train_pipeline
train_pipeline[1].transform.scale = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 438
test_pipeline[2].crop_size = 384
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].scale = 438
tta_pipeline[2].crop_size = 384
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2.5e-5))
auto_scale_lr = dict(base_batch_size=16)
