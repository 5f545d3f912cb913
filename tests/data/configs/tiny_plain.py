# The recipe without a teacher, tiny, and with nothing random in it but the
# order of the pictures, so that runs can be compared.
_base_ = '../../../configs/vcmamba_s_8xb128_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(8, 16, 16, 32),
            depths=(1, 1, 1, 2),
            num_mdm=1,
        ),
        img_size=64,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=32),
    head=dict(num_classes=10, in_channels=32),
    train_cfg=dict(augments=None),
)
data_preprocessor = dict(num_classes=10)
loader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root='data/tiny',
        metainfo=dict(classes=[str(i) for i in range(10)]),
        pipeline=[
            dict(type='SeedSample'),
            dict(type='LoadImageStrict'),
            dict(type='Resize', scale=(64, 64)),
            dict(type='PackInputs'),
        ],
    ),
)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
