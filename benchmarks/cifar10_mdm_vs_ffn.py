"""Do the MDM blocks help? A small VCMamba against convolution alone.

Three models are trained from scratch on the same batches of CIFAR-10, in the
same order, with the same augmentation and the same recipe:

mdm: two FFN blocks of the last stage are multi-directional Mamba blocks;
ffn: FFN blocks only, with no fewer parameters and no fewer MACs than mdm;
mdm_without_scan: mdm whose scan is replaced by its skip 4 D x, so that tokens
    meet only in convolutions. It tells the scan's part from that of the block
    around it (7 x 7 convolution, position embedding).
"""
import argparse
import io
import json
import math
import platform
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from unittest import mock

import mmengine
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vcmamba_mm import __version__
from vcmamba_mm.models import NormGlobalAveragePooling, VCMamba, mixer

MDM = dict(embed_dims=(24, 48, 64), depths=(1, 1, 3), num_mdm=2)
FFN = dict(embed_dims=(24, 48, 64), depths=(2, 1, 5), num_mdm=0)
MODELS = dict(
    mdm=dict(arch=MDM), ffn=dict(arch=FFN),
    mdm_without_scan=dict(arch=MDM, scan=False))
RECIPE = dict(
    batch_size=50, optimizer='AdamW', lr=2e-3, betas=(0.9, 0.999),
    weight_decay=0.05, no_weight_decay='biases, one-dimensional parameters',
    schedule='one epoch linear warm-up, cosine to 0', label_smoothing=0.1,
    augmentation='reflection padding 4, random crop 32, horizontal flip',
    upsampling='bilinear', layer_scale_init_value=1., drop_path_rate=0.,
    tested='after the last epoch, no selection')


class Classifier(nn.Module):
    """Backbone, LayerNorm, mean over the tokens, linear classifier."""

    def __init__(self, arch: dict, img_size: int, num_classes: int,
                 scan: bool = True):
        super().__init__()
        last, dims = len(arch['depths']) - 1, arch['embed_dims'][-1]
        self.backbone = VCMamba(
            arch,
            img_size=img_size,
            out_indices=last,
            drop_path_rate=RECIPE['drop_path_rate'],
            layer_scale_init_value=RECIPE['layer_scale_init_value'])
        self.neck = NormGlobalAveragePooling(dims)
        self.fc = nn.Linear(dims, num_classes)
        self.scan = mixer.multi_directional_scan if scan else _skip_only

    def forward(self, x: Tensor) -> Tensor:
        with mock.patch.object(mixer, 'multi_directional_scan', self.scan):
            return self.fc(self.neck(self.backbone(x))[0])


def _skip_only(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
               D: Tensor, *args, **kwargs) -> Tensor:
    return 4 * D * x


def read_pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file of a folder or a tar, sorted."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob('*') if p.is_file()):
            yield file.as_posix(), file.read_bytes()
        return
    with tarfile.open(path) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if not member.isdir():
                yield member.name, tar.extractfile(member).read()


def load_data(path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], list]:
    """Read ``.../{train,test}/<class>/<picture>``.

    Returns:
        tuple: For each split the pictures, uint8, (n, 3, height, width), and
        the labels, int64, (n, ); and the names of the classes.

    Raises:
        ValueError: If a file cannot be used; none is left out.
    """
    pictures = dict(train=[], test=[])
    names = dict(train=[], test=[])
    for name, content in read_pictures(path):
        split, label = (['', '', *name.split('/')])[-3:-1]
        if split not in pictures:
            raise ValueError(f'{name} is not in train/<class> or test/<class>')
        try:
            image = np.array(Image.open(io.BytesIO(content)).convert('RGB'))
        except OSError as error:
            raise ValueError(f'{name} cannot be read as a picture') from error
        if image.shape != (32, 32, 3):
            raise ValueError(f'{name} has not 32 x 32 pixels')
        pictures[split].append(image)
        names[split].append(label)
    classes = sorted(set(names['train']))
    if not classes or classes != sorted(set(names['test'])):
        raise ValueError(f'{path}: train and test need the same classes, got '
                         f'{classes} and {sorted(set(names["test"]))}')
    return {
        split: (torch.from_numpy(np.stack(pictures[split])).permute(
            0, 3, 1, 2), torch.tensor([classes.index(c) for c in names[split]]))
        for split in pictures
    }, classes


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by 4, cut 32 x 32 pixels out at random, flip every other one."""
    top, left = torch.randint(9, (2, len(x)), generator=generator)
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = F.pad(x, (4, 4, 4, 4), mode='reflect')
    x = x.unfold(2, 32, 1).unfold(3, 32, 1)[
        torch.arange(len(x)), :, top, left]
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def complexity(model: Classifier, size: int) -> tuple[int, int]:
    """Parameters that the output depends on, and MACs of one picture."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, size, size)).sum().backward()
    flops = counter.get_flop_counts()['Global']
    del flops
    params = sum(p.numel() for p in model.parameters() if p.grad is not None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    model.zero_grad()
    return params, counter.get_total_flops() // 2


