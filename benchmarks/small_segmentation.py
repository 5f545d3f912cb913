"""Small segmenters, trained on CamVid at a third of its resolution."""

import io
from pathlib import Path

import numpy as np
import small_training as small
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import SegformerHead
from PIL import Image
from torch import Tensor, nn

NUM_CLASSES = 11
VOID = -100  # what cross_entropy leaves out; 11 in the files
REDUCTION = 3  # of height and width: 480 x 360 -> 160 x 120
CROP = 96, 128  # height and width


class Segmenter(nn.Module):
    """Backbone and SegFormer's head, which takes maps of any strides."""

    def __init__(self, backbone: nn.Module, num_classes: int):
        super().__init__()
        channels = [backbone.embed_dims[i] for i in backbone.out_indices]
        self.backbone = backbone
        self.head = SegformerHead(
            in_channels=channels,
            in_index=list(range(len(channels))),
            channels=64,
            num_classes=num_classes,
            dropout_ratio=0.0,
            norm_cfg=dict(type='BN'),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode='bilinear')


def load_data(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read ``.../{images,annotations}/{train,val}/<name>``, made smaller.

    Pictures are averaged over squares, of label maps the middle of each is
    taken.

    Args:
        path: Folder or tar.

    Returns:
        dict: For 'train' and 'test' (CamVid's val) the pictures, uint8, (n,
        3, height, width), and the labels, int64, (n, height, width).

    Raises:
        ValueError: If a file cannot be used; none is left out.
    """
    found = {
        (kind, split): {}
        for kind in ('images', 'annotations')
        for split in ('train', 'val')
    }
    for name, content in small.read_pictures(path):
        *_, kind, split, file = ('', '', *name.split('/'))
        if (kind, split) not in found:
            raise ValueError(
                f'{name} is not in images or annotations, train or val'
            )
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except OSError as error:
            raise ValueError(f'{name} cannot be read as a picture') from error
        found[kind, split][Path(file).stem] = image
    data = {}
    for split in ('train', 'val'):
        images, labels = found['images', split], found['annotations', split]
        if not images or images.keys() != labels.keys():
            raise ValueError(
                f'{path}: {split} needs pictures, and an annotation of the '
                'same name for each'
            )
        middle = slice(REDUCTION // 2, None, REDUCTION)
        x = [
            np.array(image.convert('RGB').reduce(REDUCTION))
            for image in images.values()
        ]
        y = [np.array(label)[middle, middle] for label in labels.values()]
        y = torch.from_numpy(np.stack(y).astype(np.int64))
        data['test' if split == 'val' else split] = (
            torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2),
            torch.where(y < NUM_CLASSES, y, VOID),
        )
    return data


class Segmentation(small.Classification):
    """Label maps, and the mean IoU of what a model makes of the pictures."""

    score_name = 'mIoU'
    recipe = dict(
        small.RECIPE,
        batch_size=5,
        augmentation='random crop, horizontal flip',
        upsampling='none',
    )

    def __init__(self, data: dict):
        super().__init__(data, CROP)
        self.num_classes = NUM_CLASSES

    def prepare(self, pictures: Tensor) -> Tensor:
        return (pictures.float() - self.mean) / self.std

    def batch(
        self, chosen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Crops at random, half of them flipped."""
        height, width = CROP
        rows, columns = (
            size - cut + 1 for size, cut in zip(self.x.shape[2:], CROP)
        )
        crops = []
        for i in chosen:
            top = torch.randint(rows, (), generator=generator)
            left = torch.randint(columns, (), generator=generator)
            # The label is the fourth channel.
            both = torch.cat([self.x[i], self.y[i, None]])
            crop = both[:, top : top + height, left : left + width]
            if torch.rand((), generator=generator) < 0.5:
                crop = crop.flip(2)
            crops.append(crop)
        crops = torch.stack(crops)
        return self.prepare(crops[:, :3]), crops[:, 3]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Mean over the classes of intersection over union, in percent."""
        model.eval()
        confusion = torch.zeros(NUM_CLASSES, NUM_CLASSES)
        for x, y in zip(*(part.split(10) for part in self.test)):
            valid = y != VOID
            guess = model(self.prepare(x)).argmax(1)[valid]
            pairs = NUM_CLASSES * y[valid] + guess
            confusion += pairs.bincount(minlength=NUM_CLASSES**2).view(
                NUM_CLASSES, NUM_CLASSES
            )
        hits = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - hits
        return 100 * float((hits / union)[union > 0].mean())
