# As imagenet_bs128_224_once.py, in larger batches; the last one of an epoch is
# trained with.
_base_ = 'imagenet_bs128_224_once.py'
train_dataloader = dict(batch_size=256, drop_last=False)
