# ImageNet-1K with the same augmentation, each image once in an epoch; what
# is left of a batch at the end is dropped.
_base_ = 'imagenet_bs128_224.py'
train_dataloader = dict(
    drop_last=True,
    sampler=dict(sampler=dict(type='DefaultSampler', shuffle=True)),
)
