# One's own images and masks, data_root/{images,annotations}/{train,val}/,
# <name>.jpg and <name>.png. A mask's values are the numbers of the classes
# from 0 on; 255 is not trained and not counted. The leaf configs name the
# classes in metainfo.
_base_ = 'ade20k_512x512.py'
dataset_type = 'BaseSegDataset'
data_root = 'data/my_masks'

train_pipeline = _base_.train_pipeline
train_pipeline[1].transform[1].reduce_zero_label = False
test_pipeline = _base_.test_pipeline
test_pipeline[3].reduce_zero_label = False

train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/train', seg_map_path='annotations/train'
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/val', seg_map_path='annotations/val'
        ),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
