"""Export of classifiers and segmenters, compared with PyTorch.

A model is traced with ``torch.export``, the scan as
``vcmamba_mm.ops.export_scan.export_scan``; the traced program is saved as
it is (``torch-export``) or translated to ONNX. Neither file needs this package
to be run.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..models.layers import ScanMixer
from ..ops.export_scan import export_scan, import_scan_op
from ..ops.scan_operator import unpack
from .free_sizes import free_heads, free_windows
from .fuse import check_eval_mode, fold_norms

# Largest difference to PyTorch in float32, relative to the largest logit, of
# a file that computes in each type. Half precision rounds every map by up to
# 2^-11 = 5e-4; over some hundred of them that adds up, like a random walk.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
MIN_OPSET = 16

Run = Callable[[Tensor], Tensor]
Shape = tuple[int, int, int, int]


class ExportError(RuntimeError):
    """A model that cannot be exported, or came out wrong."""


class ExportReport(NamedTuple):
    """Attributes:
    errors: Largest difference to PyTorch, relative to the largest logit, of
        each shape of images that was tried, the exported one first.
    file_size: Bytes.
    num_nodes: Operators in the graph, those inside of loops included.
    seconds: Time for one image of the exported size, median.
    torch_seconds: The same of the model in PyTorch, on as many threads.
    classes: How to get the classes from the logits, in words.
    """

    errors: dict[Shape, float]
    file_size: int
    num_nodes: int
    seconds: float
    torch_seconds: float
    classes: str


# How a data preprocessor says that it turns the channels around: mmpretrain's,
# MMEngine's, mmseg 1.2's.
_CONVERSIONS = ('to_rgb', '_channel_conversion', 'channel_conversion')


class Logits(nn.Module):
    """From images to logits: what is exported.

    Args:
        model: A classifier of mmpretrain or a segmenter of mmseg.
        with_preprocessing: Take the images as they come out of the data
            pipeline, uint8 and in its order of channels, and do what the
            model's data preprocessor does: order of channels, mean, std.

    Raises:
        ExportError: If ``model`` is neither.
    """

    def __init__(self, model: nn.Module, with_preprocessing: bool = False):
        super().__init__()
        self.model = model
        self.is_segmenter = hasattr(model, 'decode_head')
        if not (self.is_segmenter or hasattr(model, 'head')):
            raise ExportError(
                f'{type(model).__name__} is neither a classifier nor a '
                'segmenter: it has no head and no decode_head'
            )
        self.in_channels = model.backbone.in_channels
        self.with_preprocessing = with_preprocessing
        self.training = model.training

    def _preprocess(self, images: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        images = images.float()
        if self.in_channels == 3 and any(
            getattr(preprocessor, name, False) for name in _CONVERSIONS
        ):
            images = images.flip(1)
        if preprocessor._enable_normalize:
            images = (images - preprocessor.mean) / preprocessor.std
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``, (batch, channels, height, width), float32.

        (batch, classes) of a classifier, averaged over its heads; (batch,
        classes, height, width) of a segmenter, resized to the image, or
        (batch, 1, height, width) of a binary head.
        """
        if self.with_preprocessing:
            images = self._preprocess(images)
        dtype = next(self.model.backbone.stem.parameters()).dtype
        logits = self.model(images.to(dtype), mode='tensor').float()
        if not self.is_segmenter:
            return logits
        return F.interpolate(
            logits,
            images.shape[2:],
            mode='bilinear',
            align_corners=self.model.align_corners,
        )

    def classes(self) -> str:
        """How to get the classes from the logits, in words."""
        if self.is_segmenter and self.model.decode_head.out_channels == 1:
            threshold = self.model.decode_head.threshold
            return f'1 where sigmoid(logits) > {threshold}, 0 elsewhere'
        threshold = getattr(getattr(self.model, 'head', None), 'thr', None)
        if threshold is not None:  # several labels
            return f'all with sigmoid(logits) >= {threshold}'
        return 'argmax of the logits along axis 1'

    def example(self, *shape: int) -> Tensor:
        """Random images of the kind that it takes."""
        if self.with_preprocessing:
            return torch.randint(256, shape, dtype=torch.uint8)
        return torch.randn(shape)


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Give weights the type, but those of the scan and of preprocessing."""
    preprocessing = set(model.data_preprocessor.modules())
    for module in model.modules():
        if module in preprocessing or isinstance(module, ScanMixer):
            continue
        for tensor in (
            *module.parameters(recurse=False),
            *module.buffers(recurse=False),
        ):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _decomposed_scan(*args) -> tuple[Tensor, Tensor]:
    # less backend and save_states
    tensors, options = unpack(*args[:-2])
    # In float32 always, as the operator does.
    y = export_scan(tensors.to(torch.float32), options)
    return y, y.new_empty(0)


def _decomposed_layer_norm(
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _cudnn_enable: bool = True,
) -> Tensor:
    dims = list(range(-len(shape), 0))
    y = x.float()  # float16 would round, or overflow, in the sums
    y = y - y.mean(dims, keepdim=True)
    y = y / (y.pow(2).mean(dims, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight
    return (y if bias is None else y + bias).to(x.dtype)


def _trace(
    logits: Logits,
    shape: tuple[int, int],
    dynamic: bool,
    with_layer_norm: bool,
) -> ExportedProgram:
    decompositions = {torch.ops.vcmamba_mm.scan.default: _decomposed_scan}
    if not with_layer_norm:
        layer_norm = torch.ops.aten.layer_norm.default
        decompositions[layer_norm] = _decomposed_layer_norm
    batch, dynamic_shapes = 1, None
    if dynamic:
        logits = copy.deepcopy(logits)
        free_windows(logits)
        if logits.is_segmenter:
            free_heads(logits)
        # A batch of one, and a map of one row or column, would be taken for
        # one that stays so. What ONNX computes fits these, too.
        batch, smallest = 2, logits.model.backbone.total_stride + 1
        shape = [max(side, smallest) for side in shape]
        dynamic_shapes = {
            0: Dim('batch'),
            2: Dim('height', min=smallest),
            3: Dim('width', min=smallest),
        }
    images = logits.example(batch, logits.in_channels, *shape)
    with torch.no_grad():
        program = torch.export.export(
            logits, (images,), dynamic_shapes=(dynamic_shapes,)
        )
        return program.run_decompositions(decompositions)


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    opset: int | None,
    smallest: int | None,
) -> tuple[Run, int]:
    """Translate, save and load; return how to run it, and its nodes."""
    try:
        import onnx
        import onnxruntime
        from onnx_ir.passes.common import RemoveUnusedNodesPass
        from onnxscript.optimizer import fold_constants

        from . import onnx_graph
    except ImportError as error:
        raise ExportError(
            f'export to ONNX needs {error.name}: '
            'pip install "vcmamba-mmlab[export]"'
        ) from error
    names = {0: 'batch', 2: 'height', 3: 'width'}
    onnx_program = torch.onnx.export(
        program,
        input_names=['images'],
        output_names=['logits'],
        dynamic_shapes=[names] if smallest else None,
        dynamo=True,
        verbose=False,
        opset_version=opset and max(opset, 18),  # PyTorch writes no older one
    )
    model = onnx_program.model
    # PyTorch leaves out what is large. OpenVINO reads no Scan whose body takes
    # a value that was computed outside (the decay rates), and ONNX Runtime
    # quantizes only weights that are constants.
    fold_constants(model, input_size_limit=2**20)
    if opset and opset < 18:
        onnx_graph.lower(model, opset)
    written = model.opset_imports['']
    if opset and written != opset:
        raise ExportError(
            f'PyTorch {torch.__version__} can write no opset {opset}: nothing '
            'was kept, choose an older one'
        )
    if smallest and smallest > 1:
        onnx_graph.refuse_smaller(model, smallest)
    onnx_graph.remove_traces(model)
    # Constants that its optimizer has folded; onnxruntime warns of them.
    RemoveUnusedNodesPass()(model)
    # The oldest that the opset goes with: older runtimes refuse newer ones.
    model.ir_version = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid('', written)]
    )
    onnx_program.save(path, external_data=False)
    try:
        onnx.checker.check_model(path, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f'no valid ONNX of opset {written}: nothing was kept, choose '
            f'another opset ({str(error).splitlines()[0]})'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, dict(images=images.numpy()))
        return torch.from_numpy(logits)

    return run, sum(1 for _ in model.graph.all_nodes())


def _write_torch(program: ExportedProgram, path: Path) -> tuple[Run, int]:
    """Save and load; return how to run it, and its number of nodes."""
    torch.export.save(program, path)
    nodes = (
        node
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
    )
    num_nodes = sum(node.op == 'call_function' for node in nodes)
    return torch.export.load(path).module(), num_nodes


# How the files of a format end.
FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2'}


def _compare(
    run: Run, logits: Logits, shape: Shape, tolerance: float
) -> float:
    images = logits.example(*shape)
    expected, found = logits(images), run(images)
    if found.shape != expected.shape:
        raise ExportError(
            f'the exported model gives {tuple(found.shape)} for images of '
            f'{shape}, PyTorch {tuple(expected.shape)}: nothing was kept'
        )
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= tolerance:
        raise ExportError(
            f'the exported model differs from PyTorch by {error:.1e} of the '
            f'largest logit for images of {shape}, {tolerance:.0e} is '
            'allowed: nothing was kept'
        )
    return error


def _median_seconds(*runs: Run, images: Tensor) -> list[float]:
    """Time of each, taking turns."""
    durations = [[] for _ in runs]
    for _ in range(2 + 7):  # two to warm up
        for run, its in zip(runs, durations):
            begin = time.perf_counter()
            run(images)
            its.append(time.perf_counter() - begin)
    return [statistics.median(its[2:]) for its in durations]


@torch.no_grad()
def export(
    model: nn.Module,
    path: str | os.PathLike,
    format: str,
    shape: tuple[int, int],
    dynamic: bool = False,
    with_preprocessing: bool = False,
    fuse: bool = True,
    opset: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ExportReport:
    """Export a model on the CPU; keep the file only if it is right.

    It is written under another name in the same folder, loaded, run on random
    images and compared with ``model`` in PyTorch, for the exported shape and,
    if ``dynamic``, three others, and renamed then. Its input is called
    ``images``, its output ``logits``, as ``Logits`` says.

    Args:
        model: Classifier or segmenter in eval mode; it is not changed.
        path: File to write.
        format: 'onnx' (needs the extra ``export``) or 'torch-export' (for
            ``torch.export.load``).
        shape: Height and width in pixels.
        dynamic: Take any batch size, height and width, from the smallest that
            the backbone takes ('torch-export': from its total stride and one
            pixel), and fail at smaller ones; otherwise one image of
            ``shape``.
        with_preprocessing: Take uint8 images, see ``Logits``.
        fuse: Fold norms, see ``fold_norms``.
        opset: Version of ONNX's operators, from 16 on; None leaves the choice
            to PyTorch. The older, the older the runtimes that take the file.
        dtype: What the weights are and what it computes in, torch.float32 or
            torch.float16; the scan and preprocessing in float32 always.
            Images and logits are of the same types with either.

    Raises:
        ExportError: If the model cannot be exported, or differs from PyTorch
            in float32 by more than ``TOLERANCES[dtype]`` of the largest
            logit; there is no new file then.
        ImportError: If PyTorch is older than 2.8.
        ValueError: If an argument does not fit, or ``model`` is in training
            mode.
    """
    import_scan_op()  # fails now, rather than in the midst of tracing
    if format not in FORMATS:
        raise ValueError(
            f'unknown format {format!r}: choose one of {tuple(FORMATS)}'
        )
    if dtype not in TOLERANCES:
        raise ValueError(
            f'unknown dtype {dtype}: choose one of {tuple(TOLERANCES)}'
        )
    if opset is not None and (format != 'onnx' or opset < MIN_OPSET):
        raise ValueError(
            f'opset is for the format onnx, from {MIN_OPSET} on, got {opset} '
            f'for {format}'
        )
    path, suffix = Path(path), FORMATS[format]
    if path.suffix != suffix:
        raise ValueError(
            f'{path}: files of the format {format} end with {suffix}'
        )
    if not path.parent.is_dir():
        raise ValueError(f'folder {path.parent} does not exist')
    logits = Logits(model, with_preprocessing)
    check_eval_mode(logits)
    smallest = model.backbone.smallest
    if format == 'torch-export':
        smallest = model.backbone.total_stride + 1  # see _trace
    if dynamic and min(shape) < smallest:
        raise ValueError(
            f'a dynamic model takes images from {smallest} x {smallest} '
            f'pixels on, got {shape[0]} x {shape[1]}'
        )
    height, width = shape
    sizes = [(1, height, width)]
    if dynamic:
        sizes += [
            (3, smallest, smallest + 40),
            (2, height + 17, max(smallest, width // 2)),
            (1, max(smallest, height // 2), width + 60),
        ]
    shapes = [(batch, logits.in_channels, *size) for batch, *size in sizes]

    exported = Logits(copy.deepcopy(model), with_preprocessing)
    for module in exported.modules():
        if isinstance(module, ScanMixer):
            module.backend = 'torch'  # the operator that is decomposed
    if fuse:
        fold_norms(exported)
    _convert(exported.model, dtype)
    unchecked = path.with_name(f'{path.stem}.unchecked{suffix}')
    try:
        with_layer_norm = opset is None or opset >= 17
        program = _trace(exported, shape, dynamic, with_layer_norm)
        if format == 'onnx':
            run, num_nodes = _write_onnx(
                program, unchecked, opset, smallest if dynamic else None
            )
        else:
            run, num_nodes = _write_torch(program, unchecked)
        tolerance = TOLERANCES[dtype]
        errors = {s: _compare(run, logits, s, tolerance) for s in shapes}
        os.replace(unchecked, path)
    finally:
        unchecked.unlink(missing_ok=True)
    images = logits.example(*shapes[0])
    return ExportReport(
        errors,
        path.stat().st_size,
        num_nodes,
        *_median_seconds(run, logits, images=images),
        logits.classes(),
    )
