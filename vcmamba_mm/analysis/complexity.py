"""Parameters and multiply-accumulates (MACs), by part of the model."""

from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.analysis import complexity_analysis
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..model_zoo import load_config
from ..ops.scan_operator import scan_macs

SCAN = torch.ops.vcmamba_mm.scan


def _traced_scan_macs(inputs: list, outputs: list) -> int:
    """Multiply-accumulates of a scan in a graph of torch.jit.trace."""
    batch, height, width, channels = inputs[0].type().sizes()
    num_states = inputs[2].type().sizes()[2]
    paths = inputs[8].toIValue().split()
    return scan_macs(batch, height * width, channels, num_states, len(paths))


# So that MMEngine's counter, which mmpretrain's and mmseg's get_flops.py use,
# does not leave it out. It has no other place for that.
complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS['vcmamba_mm::scan'] = (
    _traced_scan_macs
)


class Complexity(NamedTuple):
    """Attributes:
    params: Number of parameters.
    macs: Multiply-accumulates of convolutions, linear layers and scan.
    scan_macs: The scan's part of ``macs``.
    """

    params: int
    macs: int
    scan_macs: int


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count one picture's forward pass, where the model is.

    Args:
        model: A model of an MM project, in eval mode.
        shape: The picture's channels, height, and width.
    """
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape, device=device), mode='tensor')
    # The counter counts two operations for each multiply-accumulate.
    return counter.get_total_flops() // 2


def build_model(config: str | Path | Config) -> tuple[BaseModel, int]:
    """Build the model of a config, in eval mode.

    Args:
        config: Name, path or config.

    Returns:
        tuple: The model and ``img_size`` of its backbone.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model).eval()
    return model, cfg.model.backbone.get('img_size', 224)


def model_complexity(
    model: BaseModel, shape: tuple[int, int]
) -> dict[str, Complexity]:
    """Count one picture's forward pass, without computing it.

    Args:
        model: A classifier, a segmenter, or a detector of one stage, with the
            backbone VCMamba. It is moved to the meta device and of no other
            use after that.
        shape: Height and width of the picture in pixels.

    Returns:
        dict: The backbone's stem and stages, each with the downsampling in
        front of it, the neck, the head, and 'total'.

    Raises:
        InputSizeError: If the picture is too small for the model.
        ValueError: If it is a detector of two stages.
    """
    if hasattr(model, 'roi_head'):
        raise ValueError(
            f'{type(model).__name__}: what its second stage computes depends '
            'on the picture, it cannot be counted'
        )
    model.to('meta')
    channels = model.backbone.in_channels
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, channels, *shape, device='meta'), mode='tensor')
    flops = counter.get_flop_counts()

    def complexity(name: str) -> Complexity:
        # Keys are such as 'ImageClassifier.backbone.stem'.
        count = flops.get(f'{type(model).__name__}.{name}', {})
        # The counter counts two operations for each multiply-accumulate.
        return Complexity(
            sum(p.numel() for p in model.get_submodule(name).parameters()),
            sum(count.values()) // 2,
            count.get(SCAN, 0) // 2,
        )

    parts = dict(stem=complexity('backbone.stem'))
    for i in range(len(model.backbone.stages)):
        parts[f'stage {i + 1}'] = complexity(f'backbone.stages.{i}')
    place = model.backbone.pos_embed_place
    if place is not None:
        # It is an addition; its parameters are those of the stage it is in.
        name = f'stage {place[0] + 1}'
        number = model.backbone.pos_embed.numel()
        parts[name] = parts[name]._replace(params=parts[name].params + number)
    if model.with_neck:
        parts['neck'] = complexity('neck')
    total = Complexity(
        sum(p.numel() for p in model.parameters()),
        sum(flops['Global'].values()) // 2,
        flops['Global'].get(SCAN, 0) // 2,
    )
    # What is left: mmseg calls the head in a way that hooks do not see.
    parts['head'] = Complexity(
        *(n - sum(counts) for n, counts in zip(total, zip(*parts.values())))
    )
    return dict(parts, total=total)
