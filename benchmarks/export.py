"""ONNX export of whole models: difference to PyTorch, size of file, latency.

The classifiers and a segmenter with random weights, for any size of images,
run by ONNX Runtime on the CPU. The exporter itself compares and measures.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import measure
import onnx
import torch
from backbones import fit_norms, mix_well
from measure import Goal
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from vcmamba_mm.analysis.timing import digits, table
from vcmamba_mm.deploy.export import TOLERANCES, export
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import image_size, index_root, load_config

MODELS = (
    'vcmamba_s_8xb128_in1k',
    'vcmamba_m_8xb128_in1k',
    'vcmamba_b_8xb128_in1k',
    'vcmamba_b_fpn_8xb4_40k_ade20k_512x512',
    'vmamba_t_8xb128_in1k',
    'mambavision_t_32xb128_in1k',
    'plainmamba_l1_8xb256_in1k',
)
QUICK_MODELS = (str(index_root() / 'configs/demo/vcmamba_demo_digits.py'),)


def build(cfg: Config, size: tuple[int, int]) -> nn.Module:
    """A model with random weights, whose every block can be seen in logits."""
    model = revert_sync_batchnorm(get_model(cfg, device='cpu'))
    # With that of the start of training, 1e-5, a wrong block is rounding.
    for key, parameter in model.named_parameters():
        if key.rpartition('.')[2].startswith('gamma'):
            nn.init.ones_(parameter)
    mix_well(model.backbone)
    fit_norms(model, torch.randn(4, 3, *size))
    return model.eval()


def measure_model(name: str, folder: Path) -> dict:
    """Export and compare.

    Raises:
        vcmamba_mm.deploy.export.ExportError: If ONNX Runtime gives something
            else than PyTorch.
    """
    path = folder / 'model.onnx'
    cfg = load_config(name)
    size = image_size(cfg)
    report = export(build(cfg, size), path, 'onnx', size, dynamic=True)
    nodes = onnx.load(path).graph.node
    result = dict(
        model=Path(name).stem,
        differences=[
            dict(shape=list(shape), difference=difference)
            for shape, difference in report.errors.items()
        ],
        nodes=report.num_nodes,
        scan_nodes=sum(node.op_type == 'Scan' for node in nodes),
        file_bytes=report.file_size,
        onnxruntime_ms=1e3 * report.seconds,
        torch_ms=1e3 * report.torch_seconds,
    )
    print(result, flush=True)
    return result


def check_goal(result: dict) -> Goal:
    largest = max(its['difference'] for its in result['differences'])
    return Goal(
        f'{result["model"]}: largest difference to PyTorch at four sizes',
        1e6 * largest,
        must=1e6 * TOLERANCES[torch.float32],
        unit='\u00d7 10\u207b\u2076',
        at_most=True,
    )


def report_lines(
    results: list[dict], goals: list[Goal], env: dict[str, str]
) -> list[str]:
    header = ['model', 'difference to PyTorch (batch, height, width)']
    header += ['nodes', 'Scan', 'file, MB', 'ONNX Runtime, ms', 'PyTorch, ms']
    rows = []
    for result in results:
        differences = (
            '{:.1e} ({}, {}, {})'.format(
                its['difference'], its['shape'][0], *its['shape'][2:]
            )
            for its in result['differences']
        )
        rows.append(
            [
                result['model'],
                '; '.join(differences),
                str(result['nodes']),
                str(result['scan_nodes']),
                f'{result["file_bytes"] / 1e6:.1f}',
                digits(result['onnxruntime_ms']),
                digits(result['torch_ms']),
            ]
        )
    return [
        '# Export to ONNX',
        '',
        'Written by `benchmarks/export.py`.',
        '',
        *table(header, rows),
        '',
        '## What the figures mean',
        '',
        '- Random weights and inputs, float32; batch norms have the '
        'statistics of their inputs and layer scales are 1, so that every '
        'block counts. Exported with dynamic sizes and folded norms.',
        '- The difference is the largest of any logit, relative to the '
        'largest logit, to the model in PyTorch before norms are folded. The '
        'first size is that of the export.',
        '- Nodes: those of the file, those inside of the Scans included. '
        'Scan: one for each block that scans, two of VMamba.',
        '- Times: one image of the exported size, median of seven in turns '
        'after two to warm up; PyTorch runs the model as it is, not folded.',
        *measure.goals_section(goals),
        *measure.environment_section(env),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_arguments(parser, devices=['cpu'])
    parser.add_argument(
        '--models',
        nargs='+',
        metavar='MODEL',
        help='only these, by name or config file; any family, classifiers and '
        'segmenters',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    begin = time.perf_counter()
    models = args.models or (QUICK_MODELS if args.quick else MODELS)
    with tempfile.TemporaryDirectory() as folder:
        results = [measure_model(name, Path(folder)) for name in models]
    goals = [check_goal(result) for result in results]
    env = measure.environment('cpu')
    env |= {name: version(name) for name in ('onnx', 'onnxruntime')}
    env['wall time'] = f'{time.perf_counter() - begin:.0f} s'
    result = dict(
        benchmark='export',
        device='cpu',
        quick=args.quick,
        environment=env,
        results=results,
        goals=[dict(asdict(g), verdict=g.verdict) for g in goals],
    )
    lines = report_lines(results, goals, env)
    measure.write_report(args, 'export', 'cpu', result, lines)


if __name__ == '__main__':
    main()
