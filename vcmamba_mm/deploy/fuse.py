"""The deployment form: norms folded into convolutions, channels last."""

import functools
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import torch
import torch._inductor.config
import torch.nn as nn
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.layers import GELU, PointwiseConv2d, SharedScanMixer
from ..models.mambavision.blocks import ConvBlock
from ..models.vcmamba.blocks import (
    ConvFFN,
    FFNBlock,
    LinearFFN,
    MDMBlock,
)
from ..models.vcmamba.mixer import MultiDirectionalMamba
from .kernels import FusedConv2d, is_float32_inference_on_cpu


class _FusedConvFFN(ConvFFN):
    """A part of the batch after the other, so that its maps stay in the cache.

    The hidden map of a whole batch is read and written three times, from
    memory that the system has to hand out anew each time.
    """

    BYTES_PER_THREAD = 4 * 2**20  # of the hidden map

    def forward(self, x: Tensor) -> Tensor:
        forward = super().forward
        if not is_float32_inference_on_cpu(x):
            return forward(x)
        _, _, height, width = x.shape
        image_bytes = x.itemsize * self.fc1.out_channels * height * width
        room = self.BYTES_PER_THREAD * torch.get_num_threads()
        parts = x.split(max(1, room // image_bytes))
        if len(parts) == 1:
            return forward(x)
        return torch.cat([forward(part) for part in parts])


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode, float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        weight = norm.weight.double()
        scale, shift = scale * weight, shift * weight + norm.bias.double()
    return scale, shift


def _fold_output(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make ``conv(x)`` what ``scale * conv(x) + shift`` was."""
    bias = 0.0 if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    _set(conv, weight, bias * scale + shift)


def _fold_input(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make a 1x1 ``conv(x)`` what ``conv(scale * x + shift)`` was.

    Larger ones pad between the two.
    """
    bias = 0.0 if conv.bias is None else conv.bias.double()
    weight = conv.weight.double()
    _set(
        conv,
        weight * scale[:, None, None],
        bias + weight.flatten(1) @ shift,
    )


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight)
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.empty_like(conv.weight[:, 0, 0, 0]))
    conv.bias.copy_(bias)


class _Folder:
    def __init__(self, model: nn.Module):
        # What several modules share, or hold the weight of, stays as it is.
        self.uses = Counter(
            id(used)
            for module in model.modules()
            for used in (
                *module._modules.values(),
                *module._parameters.values(),
            )
        )

    def _is_used_once(self, module: nn.Module) -> bool:
        return all(
            self.uses[id(used)] == 1
            for used in (module, *module.parameters(recurse=False))
        )

    def _is_plain(self, module: nn.Module, *types: type[nn.Module]) -> bool:
        # Subclasses and weights that are computed may mean something else.
        return (
            type(module) in types
            and {'weight', 'bias'} <= module._parameters.keys()
            and self._is_used_once(module)
        )

    def _is_conv(self, module: nn.Module) -> bool:
        return self._is_plain(module, nn.Conv2d, Conv2d, PointwiseConv2d)

    def _is_norm(self, module: nn.Module) -> bool:
        return (
            isinstance(module, _BatchNorm)
            and module.running_var is not None
            and self._is_used_once(module)
        )

    def _absorb(
        self, conv: nn.Module, fold: Callable, parent: nn.Module, name: str
    ) -> None:
        """Fold the norm ``parent.name`` into ``conv``."""
        norm = getattr(parent, name)
        if self._is_conv(conv) and self._is_norm(norm):
            fold(conv, *_affine(norm))
            setattr(parent, name, nn.Identity().eval())

    def fold(self, module: nn.Module) -> None:
        """Fold the norms, scales and biases that ``module`` applies."""
        if isinstance(module, SharedScanMixer) and self._is_plain(
            module.dt_proj, nn.Linear
        ):
            module.dt_proj.bias.mul_(module.dt_bias_scale)
            module.dt_bias_scale = 1.0
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            for (_, conv), (name, _) in pairwise(children):
                self._absorb(conv, _fold_output, module, name)
        elif isinstance(module, ConvModule):
            place = module.order.index
            if module.with_norm and place('norm') == place('conv') + 1:
                self._absorb(
                    module.conv, _fold_output, module, module.norm_name
                )
                module.with_norm = not isinstance(module.norm, nn.Identity)
        elif isinstance(module, ConvFFN):
            self._absorb(module.fc1, _fold_output, module, 'norm1')
            self._absorb(module.dwconv, _fold_output, module, 'norm2')
            self._absorb(module.fc2, _fold_output, module, 'norm3')
        elif isinstance(module, ConvBlock):
            self._absorb(module.conv1, _fold_output, module, 'norm1')
            self._absorb(module.conv2, _fold_output, module, 'norm2')
        elif isinstance(module, MultiDirectionalMamba):
            self._absorb(module.in_proj, _fold_output, module, 'in_norm')
            self._absorb(module.out_proj, _fold_output, module, 'out_norm')
        elif isinstance(module, FFNBlock):
            ffn, gamma = module.ffn, module.gamma
            linear = isinstance(ffn.norm3, nn.Identity)
            if gamma is not None and linear and self._is_conv(ffn.fc2):
                scale = gamma.double().flatten()
                _fold_output(ffn.fc2, scale, torch.zeros_like(scale))
                module.gamma = None
        elif isinstance(module, MDMBlock):
            mixer, ffn = module.mixer, module.ffn
            if mixer.gate_proj is None:  # else two convolutions follow
                self._absorb(mixer.in_proj, _fold_input, module, 'norm1')
            if ffn is not None:
                self._absorb(ffn.fc1, _fold_input, module, 'norm2')


def check_eval_mode(model: nn.Module) -> None:
    """Raise a ``ValueError`` if a part of ``model`` is in training mode."""
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                f'{name or type(module).__name__} is in training mode, where '
                'norms use the statistics of the batch: call model.eval() '
                'before'
            )


@torch.no_grad()
def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every batch norm that can be folded exactly, in place.

    Into the convolution before it or, of the MDM blocks' pre-norms, into the
    1x1 convolution after it; layer scale into the ffn's last convolution;
    ``dt_bias_scale`` into the bias of delta. Computed in float64. Other norms
    (LayerNorm, GroupNorm, batch norms without running statistics, the one
    before the pooling of a classifier), and modules or weights used in several
    places, stay: of VMamba, which has LayerNorms alone, everything.

    Norms and layer scales folded are gone from the state dict, so that it
    fits no config, and a checkpoint not the model: load first, then fold.

    Args:
        model: A backbone, a classifier, a segmenter, or any other model with
            some of their modules or of mmcv's ``ConvModule``, in eval mode.
            It is changed; once folded it stays as it is.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If a part of ``model`` is in training mode.
    """
    check_eval_mode(model)
    folder = _Folder(model)
    # Parents last: layer scale comes after the norm inside the ffn.
    for module in reversed(list(model.modules())):
        folder.fold(module)
    return model


def _use_fused_convs(module: nn.Module) -> None:
    """Let the 1x1 and depthwise convolutions of a block be fused ones.

    And the ffn the one that divides its batch.
    """
    if not isinstance(module, (ConvFFN, LinearFFN, MultiDirectionalMamba)):
        return
    for child in module.children():
        if type(child) in (nn.Conv2d, PointwiseConv2d):
            child.__class__ = FusedConv2d
    if isinstance(module, ConvFFN) and (
        isinstance(module.norm1, nn.Identity)
        and isinstance(module.norm2, nn.Identity)
        and type(module.act) in (nn.GELU, GELU)
        and module.act.approximate == 'none'
    ):
        module.fc1.gelu = module.dwconv.gelu = True
        module.act = nn.Identity().eval()
    if type(module) is ConvFFN:
        module.__class__ = _FusedConvFFN


def fuse(model: nn.Module) -> nn.Module:
    """Bring a model into the form that runs fastest, in place.

    ``fold_norms``, channels-last weights, which convolutions hand on to
    the feature maps, and on the CPU (float32, under ``torch.inference_mode``
    or ``no_grad``), in the blocks of VCMamba, convolutions fused with their
    GELU and batches taken in parts that fit the cache. There the first input
    of a size, up to a factor of two, takes longer: the kernels that can do a
    convolution are timed, and the fastest is taken from then on (the same
    one each time if ``torch.use_deterministic_algorithms``). float32 outputs
    differ by rounding, less than 1e-5 of the largest. For inference only; a
    model that was fused stays as it is.

    Args, returns, raises: as ``fold_norms``.

    Example:
        >>> backbone = fuse(VCMamba('s').eval())
        >>> with torch.inference_mode():
        ...     (feature_map,) = backbone(torch.randn(1, 3, 224, 224))
    """
    fold_norms(model)
    for module in model.modules():
        _use_fused_convs(module)
    return model.to(memory_format=torch.channels_last)


def optimize(model: nn.Module, cuda_graphs: bool = False) -> nn.Module:
    """``fuse`` a model and compile its parts, in place.

    Backbone, neck and head are compiled (or the model itself, if it has no
    backbone), on the CPU with the weights frozen into the code. The first
    call with a new input size takes about a minute. Runs without gradients.
    Do it once, and make copies before: a copy would run the original's code.

    Args:
        model: As for ``fuse``.
        cuda_graphs: On a GPU, record the launches and replay them
            (``torch.compile(mode='reduce-overhead')``), which pays at small
            batches. Outputs are then overwritten by the next call: clone what
            is kept.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If a part of ``model`` is in training mode, or
            ``cuda_graphs`` is asked for on the CPU.
    """
    on_gpu = next(model.parameters()).is_cuda
    if cuda_graphs and not on_gpu:
        raise ValueError(
            'cuda_graphs needs the model on a GPU: call model.cuda() before'
        )
    fuse(model)
    names = ('backbone', 'neck', 'head', 'decode_head')
    parts = [getattr(model, name, None) for name in names]
    for part in filter(None, parts if parts[0] else [model]):
        part.forward = _compiled(
            part.forward,
            mode='reduce-overhead' if cuda_graphs else 'default',
            freeze=not on_gpu,
        )
    return model


def _compiled(forward: Callable, mode: str, freeze: bool) -> Callable:
    compiled = torch.compile(forward, mode=mode)

    @functools.wraps(forward)
    def run(*args, **kwargs):
        with torch.no_grad(), torch._inductor.config.patch(freezing=freeze):
            return compiled(*args, **kwargs)

    return run
