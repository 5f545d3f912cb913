"""Runtimes and quantization: what an exported classifier loses, and its time.

ONNX Runtime with float32, float16 and int8, and OpenVINO where it is
installed (`pip install openvino`), against PyTorch in float32 on the CPU: the
trained model of `make demo` on its validation pictures, and VCMamba-S with
random weights on crops of photographs. Run `make demo` before.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import measure
import numpy as np
import onnx
import onnxruntime
import torch
from export import build
from onnxruntime.quantization import (
    CalibrationDataReader,
    quantize_dynamic,
    quantize_static,
)
from PIL import Image
from torch import nn

from vcmamba_mm.analysis.timing import (
    BUFFERS,
    digits,
    table,
    time_side_by_side,
)
from vcmamba_mm.deploy.export import Logits, export
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import index_root, load_config

try:
    import openvino
except ImportError:
    openvino = None

ROOT = index_root()
DEMO, DEMO_SIZE = 'demo/vcmamba_demo_digits', 64
DEMO_CONFIG = ROOT / f'configs/{DEMO}.py'
LARGE, LARGE_SIZE = 'vcmamba_s_8xb128_in1k', 224
NUM_CALIBRATION = 32
# What stays float32 in the int8 model "in part", by the names of modules. The
# scan itself is never quantized: it has no convolution or matrix product.
FLOAT_PARTS = ('.stem', '.mixer', '.head')
QUANTIZED = ['Conv', 'MatMul', 'Gemm']

Run = Callable[[np.ndarray], np.ndarray]


class Calibration(CalibrationDataReader):
    """Pictures one by one, for the ranges of feature maps."""

    def __init__(self, images: np.ndarray):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else dict(images=image[None])


def demo_pictures(split: str, number: int) -> np.ndarray:
    """Evenly from all classes, uint8, BGR, (number, 3, height, width)."""
    folder = ROOT / 'data/demo/classification' / split
    files = sorted(folder.glob('*/*'))
    if not files:
        raise SystemExit(f'no pictures in {folder}: run `make demo` before')
    files = files[:: len(files) // number][:number]
    pictures = [np.asarray(Image.open(f).convert('RGB')) for f in files]
    return np.stack([p[..., ::-1].transpose(2, 0, 1) for p in pictures])


def photo_crops(number: int, size: int, seed: int) -> np.ndarray:
    """Random crops of scikit-learn's photographs, as ``demo_pictures``."""
    from sklearn.datasets import load_sample_images

    rng, photos = np.random.default_rng(seed), load_sample_images().images
    crops = []
    for i in range(number):
        photo = photos[i % len(photos)]
        top, left = (rng.integers(n - size) for n in photo.shape[:2])
        crop = photo[top : top + size, left : left + size, ::-1]
        crops.append(crop.transpose(2, 0, 1))
    return np.stack(crops)


def in_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )
    return lambda images: session.run(None, dict(images=images))[0]


def in_openvino(path: Path, **config) -> Run:
    config['INFERENCE_NUM_THREADS'] = torch.get_num_threads()
    model = openvino.Core().compile_model(path, 'CPU', config)
    return lambda images: model(dict(images=images))['logits']


def quantize(path: Path, calibration: np.ndarray) -> dict[str, Path]:
    """int8 files of a float32 one."""
    names = ('int8 dynamic', 'int8 static', 'int8 static in part')
    files = {name: path.with_stem(name) for name in names}
    dynamic, static, in_part = files.values()
    quantize_dynamic(path, dynamic, op_types_to_quantize=QUANTIZED)
    kept = [
        node.name
        for node in onnx.load(path).graph.node
        for prop in node.metadata_props
        if prop.key == 'namespace'
        and any(part in prop.value for part in FLOAT_PARTS)
    ]
    for file, nodes_to_exclude in ((static, []), (in_part, kept)):
        quantize_static(
            path,
            file,
            Calibration(calibration),
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            nodes_to_exclude=nodes_to_exclude,
        )
    return files


def contestants(
    model: nn.Module, calibration: np.ndarray, folder: Path, dynamic: bool
) -> dict[str, tuple[Run, Path | None]]:
    """How each is run, and its file."""
    logits = Logits(model, with_preprocessing=True)

    @torch.no_grad()
    def in_pytorch(images: np.ndarray) -> np.ndarray:
        return logits(torch.from_numpy(images)).numpy()

    files = {}
    for dtype in (torch.float32, torch.float16):
        name = str(dtype).removeprefix('torch.')
        files[name] = folder / f'{name}.onnx'
        shape = calibration.shape[2:]
        export(model, files[name], 'onnx', shape, dynamic, True, dtype=dtype)
    files |= quantize(files['float32'], calibration)
    found = {'PyTorch': (in_pytorch, None)}
    for name, file in files.items():
        found[f'ONNX Runtime, {name}'] = in_onnxruntime(file), file
    if openvino:
        # OpenVINO 2026.4 cannot compile int8 files if it may use bfloat16.
        for name in ('float32', 'float16', 'int8 static in part'):
            run = in_openvino(files[name], INFERENCE_PRECISION_HINT='f32')
            found[f'OpenVINO in float32, {name}'] = run, files[name]
        file = files['float32']
        found['OpenVINO unasked, float32'] = in_openvino(file), file
    return found


def compare(
    name: str,
    model: nn.Module,
    pictures: np.ndarray,
    calibration: np.ndarray,
    folder: Path,
    quick: bool,
) -> list[dict]:
    """Differences to PyTorch on ``pictures``, and the time for one."""
    runs = contestants(model, calibration, folder, dynamic=not quick)
    logits = {
        key: np.concatenate([run(picture[None]) for picture in pictures])
        for key, (run, _) in runs.items()
    }
    timings = time_side_by_side(
        {
            key: lambda i, run=run: run(pictures[i][None])
            for key, (run, _) in runs.items()
        },
        'cpu',
        rounds=2 if quick else 10,
        warm_ups=3,
        sample_seconds=0.01,
    )
    expected, results = logits['PyTorch'], []
    for key, (_, path) in runs.items():
        difference = abs(logits[key] - expected)
        result = dict(
            model=name,
            contestant=key,
            largest_difference=float(difference.max() / abs(expected).max()),
            mean_difference=float(difference.mean() / abs(expected).max()),
            agreement=float(
                (logits[key].argmax(1) == expected.argmax(1)).mean()
            ),
            file_bytes=path.stat().st_size if path else None,
            **timings[key].as_dict(),
            median_ms=timings[key].median,
        )
        print(result, flush=True)
        results.append(result)
    return results


def report_lines(results: list[dict], env: dict[str, str]) -> list[str]:
    header = ['runtime', 'largest difference', 'mean difference']
    header += ['same class', 'file, MB', 'one picture, ms']
    lines = ['# Runtimes and quantization', '']
    lines += ['Written by `benchmarks/runtimes.py`.']
    for name in dict.fromkeys(result['model'] for result in results):
        rows = [
            [
                its['contestant'],
                f'{its["largest_difference"]:.1e}',
                f'{its["mean_difference"]:.1e}',
                f'{100 * its["agreement"]:.1f} %',
                f'{its["file_bytes"] / 1e6:.2f}' if its['file_bytes'] else '',
                digits(its['median_ms']),
            ]
            for its in results
            if its['model'] == name
        ]
        lines += ['', f'## {name}', '', *table(header, rows)]
    return [
        *lines,
        '',
        '## What the figures mean',
        '',
        '- Differences are of logits, relative to the largest logit that '
        'PyTorch gives in float32 on these pictures; *same class*: the share '
        'of pictures where the largest logit is the same.',
        '- Files take uint8 pictures of any size; norms are folded. OpenVINO '
        'computes in bfloat16 or float16 where the processor can, if it is '
        'not asked for float32 (`INFERENCE_PRECISION_HINT`).',
        '- int8: convolutions and matrix products. *Static*: with the ranges '
        f'of {NUM_CALIBRATION} pictures that are not among those compared, '
        'weights by channel. *In part*: stem, mixers and head stay float32. '
        '*Dynamic*: ranges anew for each picture.',
        '- Times: medians, contestants in turns.',
        *measure.environment_section(env),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_arguments(parser, devices=['cpu'])
    parser.add_argument(
        '--checkpoint',
        default=str(ROOT / 'work_dirs/demo/classifier/epoch_5.pth'),
        help='of the demo classifier; by default where `make demo` puts it',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    begin = time.perf_counter()
    results = []
    with tempfile.TemporaryDirectory() as folder:

        def add(name, model, pictures, calibration):
            files = Path(folder), args.quick
            results.extend(compare(name, model, pictures, calibration, *files))

        if args.quick:
            crops = photo_crops(BUFFERS, DEMO_SIZE, seed=0)
            model = build(load_config(DEMO_CONFIG), (DEMO_SIZE, DEMO_SIZE))
            add(f'{DEMO}, random', model, crops, crops)
        else:
            model = get_model(DEMO_CONFIG, args.checkpoint, device='cpu')
            pictures = demo_pictures('val', 397)
            calibration = demo_pictures('train', NUM_CALIBRATION)
            add(f'{DEMO}, trained', model, pictures, calibration)
            pictures = photo_crops(64, LARGE_SIZE, seed=0)
            calibration = photo_crops(NUM_CALIBRATION, LARGE_SIZE, seed=1)
            model = build(load_config(LARGE), (LARGE_SIZE, LARGE_SIZE))
            add(f'{LARGE}, random weights', model, pictures, calibration)
    env = measure.environment('cpu')
    env |= {name: version(name) for name in ('onnx', 'onnxruntime')}
    env['openvino'] = version('openvino') if openvino else 'not installed'
    env['wall time'] = f'{time.perf_counter() - begin:.0f} s'
    result = dict(
        benchmark='runtimes',
        device='cpu',
        quick=args.quick,
        environment=env,
        results=results,
    )
    lines = report_lines(results, env)
    measure.write_report(args, 'runtimes', 'cpu', result, lines)


if __name__ == '__main__':
    main()
