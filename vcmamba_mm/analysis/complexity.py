"""Parameters and multiply-accumulates (MACs)."""

import os
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """Attributes:
    shape: Height and width of the input in pixels.
    params: Number of parameters.
    macs: Multiply-accumulates of convolutions, linear layers and scan.
    scan_macs: The scan's part of ``macs``.
    """

    shape: tuple[int, int]
    params: int
    macs: int
    scan_macs: int


def count_macs(
    model: nn.Module, shape: tuple[int, int, int]
) -> tuple[int, int]:
    """Count one picture's forward pass, and the scan's part of it.

    Args:
        model: A model of an MM project, in eval mode.
        shape: The picture's channels, height, and width.
    """
    device = next(model.parameters()).device
    picture = torch.zeros(1, *shape, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(picture, mode='tensor')
    # The counter counts two operations for each multiply-accumulate.
    flops = counter.get_flop_counts()['Global']
    scan = flops.get(torch.ops.vcmamba_mm.scan, 0)
    return sum(flops.values()) // 2, scan // 2


def model_complexity(
    config: str, shape: list[int] | None = None
) -> Complexity:
    """Count one picture's forward pass through a config's model.

    Args:
        config: Path of a config of a classifier or a segmenter.
        shape: Height and width in pixels, or one number for both. Defaults
            to ``img_size`` of the backbone.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the input is too small for the model.
    """
    if not os.path.isfile(config):
        raise FileNotFoundError(f'config {config} does not exist')
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model).eval()
    shape = shape or cfg.model.backbone.get('img_size', 224)
    height, width = (
        (shape, shape)
        if isinstance(shape, int)
        else (shape * 2 if len(shape) == 1 else shape)
    )
    macs, scan_macs = count_macs(model, (3, height, width))
    return Complexity(
        shape=(height, width),
        params=sum(p.numel() for p in model.parameters()),
        macs=macs,
        scan_macs=scan_macs,
    )
