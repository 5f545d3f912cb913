_base_ = [
    '../_base_/models/mambavision_cls.py',
    '../_base_/datasets/image_folder_bs64_224.py',
    '../_base_/schedules/finetune_bs64_adamw_30e.py',
    '../_base_/default_runtime/classification.py',
]
# One's own images: data/my_images/{train,val}/<class>/<image>
num_classes = 10
# Weights under CC-BY-NC-SA-4.0: not for commercial use.
checkpoint = 'checkpoints/mambavision_tiny_1k.pth.tar'
init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
model = dict(
    backbone=dict(drop_path_rate=0.1, init_cfg=init_cfg),
    neck=dict(init_cfg=init_cfg),
    head=dict(num_classes=num_classes, topk=(1,)),
    train_cfg=None,
)
data_preprocessor = dict(num_classes=num_classes)
