"""What makes the configs of classification and segmentation quick."""

SMALL_CLS = ['train_dataloader.dataset.pipeline.1.transform.scale=64']
SMALL_SEG = [
    'train_dataloader.dataset.pipeline.2.scale=(160,96)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
]
SMALL_SEG_TEST = ['test_dataloader.dataset.pipeline.1.scale=(160,96)']


def data_options(root, *loops):
    return [f'{loop}_dataloader.dataset.data_root={root}' for loop in loops]
