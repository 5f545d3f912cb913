"""Backbones to be timed: ours and timm's, and in which ways ours are run.

All of them give pooled features, without a classifier.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple
from unittest import mock

import measure
import torch
import torch.nn.functional as F
from released_like import path_by_path, released_package, selective_scans
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vcmamba_mm.analysis.timing import Call
from vcmamba_mm.deploy import fuse, optimize
from vcmamba_mm.models import (
    MambaVision,
    NormGlobalAveragePooling,
    PlainMamba,
    VCMamba,
    VMamba,
)
from vcmamba_mm.models.layers import ScanMixer
from vcmamba_mm.models.mambavision import mixers as mambavision_mixers
from vcmamba_mm.models.plainmamba import mixer as plainmamba_mixer
from vcmamba_mm.models.vcmamba import mixer as vcmamba_mixer
from vcmamba_mm.models.vmamba import mixer as vmamba_mixer
from vcmamba_mm.ops.scan_inputs import from_arguments

try:
    import timm
except ImportError:
    timm = None
mambavision = released_package('mambavision')

INFERENCE, TRAINING = TASKS = 'inference', 'training step'
PLAIN, CHANNELS_LAST = '', 'channels_last'
COMPILED, RELEASED_LIKE = 'channels_last, compiled', 'released-like'
FUSED, OPTIMIZED = 'fused', 'fused, compiled'
CUDA_GRAPHS, NO_SCAN = 'fused, compiled, CUDA graphs', 'without its scans'
SELECTIVE_SCAN_REF = 'selective_scan_ref'
FAMILIES = dict(
    VCMamba=VCMamba,
    VMamba=VMamba,
    MambaVision=MambaVision,
    # Its last norm is the neck's, as with the others.
    PlainMamba=partial(PlainMamba, final_norm=False),
)
NECK_NORMS = dict(MambaVision=dict(type='BN'))  # the others': LayerNorm
# Modules that call the scan
MIXERS = vcmamba_mixer, vmamba_mixer, mambavision_mixers, plainmamba_mixer
TIMM_MODELS = (
    'convnext_tiny',
    'swin_tiny_patch4_window7_224',
    'efficientformer_l3',
)
ONLY_SIZE = dict(efficientformer_l3=224)  # models that take no other
# Without theta, the smallest part of the scan, the error would be 3e-4.
TOLERANCE = 3e-5
AUTOCAST_TOLERANCE = 0.1  # of bfloat16, which has 8 bits


class Contestant(NamedTuple):
    """A model ('VCMamba-B' or timm's name) and how it is run."""

    model: str
    variant: str = PLAIN

    def __str__(self) -> str:
        return ', '.join(filter(None, self))


def contestants(model: str, *variants: str) -> list[Contestant]:
    return [Contestant(model, variant) for variant in variants]


vmambas = partial(contestants, 'VMamba-T')
mambavisions = partial(contestants, 'MambaVision-T')
plainmambas = partial(contestants, 'PlainMamba-L1')


def vcmambas(archs: str, *variants: str) -> list[Contestant]:
    return [
        contestant
        for arch in archs
        for contestant in contestants(f'VCMamba-{arch}', *variants)
    ]


def released_mambavision() -> list[Contestant]:
    """The authors' MambaVision-T, scanned in plain PyTorch."""
    if mambavision is None:
        return []
    return contestants('mamba_vision_T', SELECTIVE_SCAN_REF)


def timm_models(size: int) -> list[Contestant]:
    if timm is None:
        return []
    return [
        Contestant(name, CHANNELS_LAST)
        for name in TIMM_MODELS
        if ONLY_SIZE.get(name, size) == size
    ]


def build(name: str, size: int) -> nn.Module:
    """A model that maps images to pooled features."""
    family, _, arch = name.partition('-')
    if family in FAMILIES:
        backbone = FAMILIES[family](arch)
        mix_well(backbone)
        model = nn.Sequential(
            backbone,
            NormGlobalAveragePooling(
                backbone.embed_dims[-1], norm_cfg=NECK_NORMS.get(family)
            ),
        )
    elif name.startswith('mamba_vision'):
        model = mambavision.create_model(name)
        model.head = nn.Identity()
    else:
        kwargs = dict(img_size=size) if name.startswith('swin') else {}
        model = timm.create_model(name, num_classes=0, **kwargs)
    fit_norms(model, torch.randn(4, 3, *[min(size, 224)] * 2))
    return model


def mix_well(backbone: nn.Module) -> None:
    """Let the branches of blocks be as large as what they are added to.

    At its initial values VMamba's features hardly depend on its scans.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)


@torch.no_grad()
def fit_norms(model: nn.Module, images: Tensor) -> None:
    """Give the batch norms the statistics of their inputs.

    Else a random model's features hardly depend on its last blocks, and a
    wrong scan would pass for rounding.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    if norms:
        model.train()(images)
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum


@contextmanager
def replaced_scan(scan: Callable[..., Tensor]) -> Iterator[None]:
    """Make our models call another scan."""
    with ExitStack() as stack:
        for mixer in MIXERS:
            stack.enter_context(mock.patch.object(mixer, 'path_scan', scan))
        yield


def released_like_scan(device: str) -> Callable[..., Tensor]:
    """A scan as the released models do it."""
    *_, selective_scan = selective_scans(device).values()

    def scan(backend: str, **inputs) -> Tensor:
        tensors, options = from_arguments(inputs)
        with torch.autocast(device, enabled=False):
            y = path_by_path(
                selective_scan, tensors.to(torch.float32), options
            )
        return y.to(tensors.x.dtype)

    return scan


def no_scan(x: Tensor, **others) -> Tensor:
    """Tokens as they are; what makes its other inputs is computed."""
    return x


def prepare(
    model: nn.Module, variant: str, device: str
) -> Callable[[Tensor], Tensor]:
    """The forward pass of a variant; changes the model."""

    def forward(images: Tensor) -> Tensor:
        features = model(images)
        return features[0] if isinstance(features, tuple) else features

    if variant == RELEASED_LIKE:
        return replaced_scan(released_like_scan(device))(forward)
    if variant == NO_SCAN:
        return replaced_scan(no_scan)(forward)
    if variant in (PLAIN, SELECTIVE_SCAN_REF):
        return forward
    if variant == FUSED:
        fuse(model.eval())
    elif variant in (OPTIMIZED, CUDA_GRAPHS):
        optimize(model.eval(), cuda_graphs=variant == CUDA_GRAPHS)
    else:
        model.to(memory_format=torch.channels_last)
    if variant == COMPILED:
        forward = torch.compile(forward, dynamic=False)
    return lambda images: forward(images.to(memory_format=torch.channels_last))


@torch.inference_mode()
def float64_features(
    model: nn.Module, variant: str, images: Tensor, device: str
) -> Tensor:
    """Features of the same model in float64; a scan is the reference."""
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, ScanMixer):
            module.backend = 'reference'
    variant = variant if variant == NO_SCAN else PLAIN
    return prepare(model, variant, device)(images.double())


def autocast(device: str) -> torch.autocast:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == 'cuda')


@torch.inference_mode()
def check_model(
    contestant: Contestant,
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    expected: Tensor,
    device: str,
) -> float:
    """Error of the features of the batch's first image.

    Raises:
        measure.WrongResultError: If it is too large.
    """
    model.eval()
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, allow_tf32=False):
        error = measure.check(
            str(contestant), forward(images)[:1], expected, TOLERANCE
        )
    if device == 'cuda':
        with autocast(device):
            error = measure.check(
                f'{contestant}, bfloat16',
                forward(images)[:1],
                expected,
                AUTOCAST_TOLERANCE,
            )
    return error


def make_call(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    task: str,
    buffers: list[Tensor],
    device: str,
) -> Call:
    """What is timed."""
    if task == INFERENCE:
        model.eval()

        @torch.inference_mode()
        def infer(i: int) -> None:
            with autocast(device):
                forward(buffers[i])

        return infer

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(i: int) -> None:
        with autocast(device):
            features = forward(buffers[i])
        loss = F.mse_loss(features.float(), torch.ones_like(features).float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
