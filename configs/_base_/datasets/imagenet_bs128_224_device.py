# The same data, with RandAugment and erasing done to whole batches on the
# model's device: less for the loader's workers to do.
_base_ = 'imagenet_bs128_224.py'

*before, rand_augment, erasing, pack = _base_.train_pipeline
train_dataloader = dict(dataset=dict(pipeline=[*before, pack]))
data_preprocessor = dict(
    type='AugmentingDataPreprocessor',
    augments=[
        dict(rand_augment, type='BatchRandAugment'),
        dict(erasing, type='BatchRandomErasing'),
    ],
)
