"""Time and memory of the published sizes of all families.

Two reports: every size at 224 pixels, as it is and fused, and one of each
family, of about equal size, from 224 to 1024 pixels.
"""

import argparse
import time
from typing import NamedTuple

import measure
import torch
from backbones import (
    FUSED,
    INFERENCE,
    PLAIN,
    Contestant,
    build,
    check_model,
    contestants,
    float64_features,
    make_call,
    prepare,
)
from torch import Tensor, nn

from vcmamba_mm.analysis.timing import (
    BUFFERS,
    FULL,
    QUICK,
    Call,
    digits,
    table,
    time_side_by_side,
)
from vcmamba_mm.models.mambavision.blocks import WindowBlocks

PUBLISHED = [
    f'{family}-{arch}'
    for family, archs in dict(
        VCMamba=('S', 'M', 'B'),
        VMamba=('T', 'S', 'B'),
        MambaVision=('T', 'S', 'B'),
        PlainMamba=('L1', 'L2', 'L3'),
    ).items()
    for arch in archs
]
EQUAL = ['VCMamba-B', 'VMamba-T', 'MambaVision-T', 'PlainMamba-L2']
ONE_WINDOW = 'one window'
CHECK_SIZE = 64  # pixels; float64's scan of a large map takes minutes
# A call takes seconds, and the larger the map, the less it varies.
SERIES = dict(rounds=3, warm_ups=1, sample_seconds=0.0)


class Part(NamedTuple):
    """A report: what is timed, at which sizes, in pixels, and how often."""

    title: str
    contestants: list[Contestant]
    sizes: tuple[int, ...]
    effort: dict


def parts(models: list[str] | None) -> dict[str, Part]:
    """Those of all models, or of some."""
    sizes = (224, 384, 512, 768, 1024)
    return dict(
        published=Part(
            'Published sizes at 224 pixels',
            [
                contestant
                for model in models or PUBLISHED
                for contestant in contestants(model, PLAIN, FUSED)
            ],
            sizes[:1],
            dict(FULL, warm_ups=5),
        ),
        resolution=Part(
            'Time and memory against resolution',
            [
                contestant
                for model in models or EQUAL
                for contestant in contestants(
                    model,
                    PLAIN,
                    *[ONE_WINDOW] * model.startswith('MambaVision'),
                )
            ],
            sizes,
            SERIES,
        ),
    )


class Entry(NamedTuple):
    """A contestant that has been found right."""

    model: nn.Module
    forward: Call
    params: int
    error: float

    @classmethod
    def make(cls, contestant: Contestant, device: str) -> 'Entry':
        model = build(contestant.model, 224).to(device)
        params = sum(p.numel() for p in model.parameters())
        if contestant.variant == ONE_WINDOW:
            for module in model.modules():
                if isinstance(module, WindowBlocks):
                    module.window_size = None
        images = torch.randn(1, 3, CHECK_SIZE, CHECK_SIZE, device=device)
        expected = float64_features(model, PLAIN, images, device)
        variant = FUSED if contestant.variant == FUSED else PLAIN
        forward = prepare(model, variant, device)
        error = check_model(
            contestant, model, forward, images, expected, device
        )
        return cls(model, forward, params, error)

    def call(self, buffers: list[Tensor], device: str) -> Call:
        return make_call(self.model, self.forward, INFERENCE, buffers, device)


def measure_part(part: Part, batch: int, device: str) -> list[dict]:
    """A row for each contestant and size."""
    entries = {c: Entry.make(c, device) for c in part.contestants}
    rows = []
    for size in part.sizes:
        shape = batch, 3, size, size
        buffers = [torch.randn(shape, device=device) for _ in range(BUFFERS)]
        calls = {c: e.call(buffers, device) for c, e in entries.items()}
        peaks = {
            c: measure.peak_memory(call, device) for c, call in calls.items()
        }
        timings = time_side_by_side(calls, device, **part.effort)
        for contestant, timing in timings.items():
            row = dict(
                contestant._asdict(),
                size=size,
                params=entries[contestant].params,
                error=entries[contestant].error,
                peak_bytes=peaks[contestant],
                **timing.as_dict(),
            )
            rows.append(row)
            mib = peaks[contestant] / 2**20
            print(f'{contestant}, {size}: {timing} ms, {mib:.0f} MiB')
    return rows


def results_tables(rows: list[dict], batch: int) -> list[str]:
    """A table of each size."""
    lines = []
    header = ['model', 'form', 'params, M', 'ms (quartiles)', 'img/s']
    header += ['ns per pixel', 'memory, MiB', 'bytes per pixel', 'error']
    for size in dict.fromkeys(row['size'] for row in rows):
        pixels = batch * size**2
        cells = []
        for row in rows:
            if row['size'] != size:
                continue
            low, median, high = row['quartiles_ms']
            cells.append(
                [
                    row['model'],
                    row['variant'] or 'as it is',
                    f'{row["params"] / 1e6:.2f}',
                    f'{digits(median)} ({digits(low)}\u2013{digits(high)})',
                    digits(1000 * batch / median),
                    digits(1e6 * median / pixels),
                    digits(row['peak_bytes'] / 2**20),
                    digits(row['peak_bytes'] / pixels),
                    f'{row["error"]:.0e}',
                ]
            )
        title = f'## {size} pixels, batch {batch}'
        lines += ['', title, '', *table(header, cells)]
    return lines


def report_lines(result: dict) -> list[str]:
    """The report of the JSON's content."""
    precision = 'float32'
    if result['device'] == 'cuda':
        precision = 'bfloat16 autocast, for the error TF32 is off'
    return [
        f'# {result["title"]}',
        '',
        'Written by `benchmarks/published.py`.',
        *results_tables(result['results'], result['batch']),
        '',
        '## What the figures mean',
        '',
        f'- The forward pass of a batch of {result["batch"]}, square '
        f'images, {precision}; random weights and inputs, pooled features, '
        'no classifier.',
        '- Each contestant has two entries, which take turns with all others '
        'in random order: medians and quartiles of both together, '
        f'{2 * result["effort"]["rounds"]} samples.',
        '- Memory is what PyTorch allocates at the peak of a forward pass, '
        'above weights and input. Scratch memory of libraries and of Numba '
        "does not count, so the scan's own buffers are missing on the CPU.",
        '- fused: `vcmamba_mm.deploy.fuse`.',
        "- MambaVision has windows of 14 and 7 tokens, its classifiers'; "
        f"*{ONE_WINDOW}*: `window_size='map'`.",
        '- Each model was checked against itself in float64 with the '
        f'reference scan, at {CHECK_SIZE} pixels; the error is relative to '
        'the largest feature.',
        *measure.environment_section(result['environment']),
    ]


def plot(rows: list[dict], batch: int) -> 'measure.Figure':
    """Time and memory for a pixel against height and width."""
    panels = {
        'time for a pixel, ns': {},
        'memory for a pixel, bytes': {},
    }
    for row in rows:
        pixels = batch * row['size'] ** 2
        values = 1e6 * row['quartiles_ms'][1], row['peak_bytes']
        for panel, value in zip(panels.values(), values):
            key = row['model'], row['variant']
            x, y = panel.setdefault(key, ([], []))
            x.append(row['size'])
            y.append(value / pixels)
    return measure.line_plot(panels, 'height and width, pixels')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measure.add_arguments(parser)
    parser.add_argument(
        '--parts', nargs='+', choices=parts(None), default=list(parts(None))
    )
    parser.add_argument(
        '--models',
        nargs='+',
        choices=PUBLISHED,
        metavar='MODEL',
        help=f'of {", ".join(PUBLISHED)}; by default all of them, and for '
        f'resolution {", ".join(EQUAL)}',
    )
    parser.add_argument('--batch', type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    for device in args.device:
        for name, part in parts(args.models).items():
            if name not in args.parts:
                continue
            if args.quick:
                part = part._replace(
                    sizes=tuple(s // 7 for s in part.sizes[:2]), effort=QUICK
                )
            begin = time.perf_counter()
            rows = measure_part(part, args.batch, device)
            env = measure.environment(device)
            env['wall time'] = f'{time.perf_counter() - begin:.0f} s'
            result = dict(
                benchmark=name,
                title=part.title,
                device=device,
                quick=args.quick,
                batch=args.batch,
                effort=part.effort,
                environment=env,
                results=rows,
            )
            measure.write_report(
                args,
                name,
                device,
                result,
                report_lines(result),
                plot(rows, args.batch) if len(part.sizes) > 1 else None,
            )


if __name__ == '__main__':
    main()
