"""Parameters and multiply-accumulates (MACs), by part of the model."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.analysis import complexity_analysis
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..model_zoo import load_config
from ..models.base import MacRule
from ..ops.scan_operator import macs_of_shapes, scan_macs

SCAN = torch.ops.vcmamba_mm.scan


def _traced_scan_macs(inputs: list, outputs: list) -> int:
    """Multiply-accumulates of a scan in a graph of torch.jit.trace."""
    batch, height, width, channels = inputs[0].type().sizes()
    num_states = inputs[2].type().sizes()[2]
    paths = inputs[8].toIValue().split()
    return scan_macs(batch, height * width, channels, num_states, len(paths))


def _traced_attention_macs(inputs: list, outputs: list) -> int:
    """As ``_traced_scan_macs``, of attention's two products."""
    return sdpa_flop_count(*(its.type().sizes() for its in inputs[:3])) // 2


# So that MMEngine's counter, which mmpretrain's and mmseg's get_flops.py use,
# does not leave them out. It has no other place for that.
complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS.update(
    {
        'vcmamba_mm::scan': _traced_scan_macs,
        'aten::scaled_dot_product_attention': _traced_attention_macs,
    }
)
# What attention is on a CPU; PyTorch's counter does not know it.
_CPU_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, **kwargs: sdpa_flop_count(
            query, key, value
        )
    ),
}


class Complexity(NamedTuple):
    """Attributes:
    params: Number of parameters.
    macs: Multiply-accumulates of convolutions, linear layers and scan.
    scan_macs: The scan's part of ``macs``.
    authors_macs: By the rule of the backbone's authors, ``mac_rule``; 0 if
        they say none.
    """

    params: int
    macs: int
    scan_macs: int
    authors_macs: int


def _authors_formulas(rule: MacRule) -> dict[object, Callable]:
    """What the counter counts otherwise by ``rule``, of shapes, and twice."""
    formulas = {
        SCAN: lambda *shapes, **kwargs: (
            2 * macs_of_shapes(*shapes, rule=rule.scan)
        ),
        torch.ops.aten.native_layer_norm: lambda x_shape, *args, **kwargs: (
            2 * rule.layer_norm * prod(x_shape)
        ),
    }
    if not rule.products:
        for operator in (torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            formulas[operator] = lambda *args, **kwargs: 0
    return formulas


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which counts attention on a CPU, too."""
    return FlopCounterMode(display=False, custom_mapping=_CPU_FORMULAS)


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count one image's forward pass, where the model is.

    Args:
        model: A model of an MM project, in eval mode.
        shape: The image's channels, height, and width.
    """
    device = next(model.parameters()).device
    with flop_counter() as counter, torch.no_grad():
        model(torch.zeros(1, *shape, device=device), mode='tensor')
    # The counter counts two operations for each multiply-accumulate.
    return counter.get_total_flops() // 2


def build_model(config: str | Path | Config) -> BaseModel:
    """Build the model of a config, in eval mode.

    Args:
        config: Name, path or config.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return MODELS.build(cfg.model).eval()


def model_complexity(
    model: BaseModel, shape: tuple[int, int]
) -> dict[str, Complexity]:
    """Count one image's forward pass, without computing it.

    Args:
        model: A classifier, a segmenter, or a detector of one stage, with a
            backbone of this project. It is moved to the meta device and of no
            other use after that.
        shape: Height and width of the image in pixels.

    Returns:
        dict: The backbone's stem and stages (layers of PlainMamba), each with
        the downsampling in front of it, its adapter, the norms of its
        outputs, the neck, the head, and 'total'; what the model lacks is left
        out.

    Raises:
        InputSizeError: If the image is too small for the model.
        ValueError: If it is a detector of two stages.
    """
    if hasattr(model, 'roi_head'):
        raise ValueError(
            f'{type(model).__name__}: what its second stage computes depends '
            'on the image, it cannot be counted'
        )
    model.to('meta')
    images = torch.zeros(1, model.backbone.in_channels, *shape, device='meta')
    rule = model.backbone.mac_rule
    formulas = _authors_formulas(rule or MacRule())
    with (
        FlopCounterMode(display=False) as ours,
        FlopCounterMode(display=False, custom_mapping=formulas) as authors,
        torch.no_grad(),
    ):
        model(images, mode='tensor')
    flops, authors_flops = ours.get_flop_counts(), authors.get_flop_counts()

    def count(module: nn.Module, name: str) -> Complexity:
        by_operator = flops.get(name, {})
        # The counter counts two operations for each multiply-accumulate.
        return Complexity(
            sum(p.numel() for p in module.parameters()),
            sum(by_operator.values()) // 2,
            by_operator.get(SCAN, 0) // 2,
            sum(authors_flops.get(name, {}).values()) // 2 if rule else 0,
        )

    def complexity(name: str) -> Complexity:
        module = model.get_submodule(name)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            # Nobody calls it.
            names = (f'{name}.{its}' for its, _ in module.named_children())
            return Complexity(*map(sum, zip(*map(complexity, names))))
        # Keys are such as 'ImageClassifier.backbone.stem'.
        return count(module, f'{type(model).__name__}.{name}')

    parts = dict(stem=complexity('backbone.stem'))
    stage = model.backbone.stage_name
    for i in range(len(model.backbone.stages)):
        parts[f'{stage} {i + 1}'] = complexity(f'backbone.stages.{i}')
    place = model.backbone.pos_embed_place
    if place is not None:
        # It is an addition; its parameters are those of the stage it is in.
        name = f'{stage} {place[0] + 1}'
        number = model.backbone.pos_embed.numel()
        parts[name] = parts[name]._replace(params=parts[name].params + number)
    if hasattr(model.backbone, 'adapter'):
        parts['adapter'] = complexity('backbone.adapter')
    norms = {model.backbone.out_norm(i) for i in model.backbone.out_indices}
    names = [name for name, module in model.named_modules() if module in norms]
    if names:
        parts['norms'] = Complexity(*map(sum, zip(*map(complexity, names))))
    if model.with_neck:
        parts['neck'] = complexity('neck')
    total = count(model, 'Global')
    # What is left: mmseg calls the head in a way that hooks do not see.
    parts['head'] = Complexity(
        *(n - sum(counts) for n, counts in zip(total, zip(*parts.values())))
    )
    return dict(parts, total=total)
