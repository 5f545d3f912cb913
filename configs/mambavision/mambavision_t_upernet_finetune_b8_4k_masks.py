_base_ = [
    '../_base_/models/mambavision_upernet.py',
    '../_base_/datasets/masks_512x512.py',
    '../_base_/schedules/finetune_bs8_adamw_4k.py',
    '../_base_/default_runtime/segmentation.py',
]
# One's own masks: data/my_masks/{images,annotations}/{train,val}/<name>.*
classes = ('background', 'object')
palette = [[0, 0, 0], [220, 20, 60]]
# Weights under CC-BY-NC-SA-4.0: not for commercial use.
checkpoint = 'checkpoints/mambavision_tiny_1k.pth.tar'
init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
model = dict(
    backbone=dict(window_size='map', init_cfg=init_cfg),  # no padding
    decode_head=dict(num_classes=len(classes)),
    auxiliary_head=dict(num_classes=len(classes)),
)
dataset = dict(metainfo=dict(classes=classes, palette=palette))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=400))
