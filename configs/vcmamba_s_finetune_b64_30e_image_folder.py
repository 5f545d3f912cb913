_base_ = [
    '_base_/models/vcmamba_cls.py',
    '_base_/datasets/image_folder_bs64_224.py',
    '_base_/schedules/finetune_bs64_adamw_30e.py',
    '_base_/default_runtime/classification.py',
]
# One's own images: data/my_images/{train,val}/<class>/<image>
num_classes = 10
init_cfg = dict(type='Pretrained', checkpoint='checkpoints/VCMamba-S.pth')
model = dict(
    backbone=dict(arch='s', drop_path_rate=0.1, init_cfg=init_cfg),
    neck=dict(in_channels=288, init_cfg=init_cfg),
    head=dict(num_classes=num_classes, in_channels=288, topk=(1,)),
    train_cfg=None,
)
data_preprocessor = dict(num_classes=num_classes)
