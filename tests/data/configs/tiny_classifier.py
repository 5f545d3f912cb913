# The classifier that golden/tiny_release.pth fits, on small pictures.
_base_ = '../../../configs/vcmamba_s_distill_8xb128_in1k.py'
model = dict(
    teacher=dict(
        _delete_=True,
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=512),
    ),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(16, 32, 48, 64),
            depths=(1, 1, 2, 4),
            num_mdm=2,
        ),
        img_size=160,
    ),
    neck=dict(in_channels=64),
    head=dict(num_classes=10, in_channels=64),
)
data_preprocessor = dict(num_classes=10)
metainfo = dict(classes=[str(i) for i in range(10)])
loader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='data/tiny', metainfo=metainfo),
)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
