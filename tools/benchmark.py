"""Latency and throughput of a config's model against the size of its input.

Writes a table (.md) and a plot (.png). Batches have about the same number of
pixels at every size.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.ticker import LogLocator
from mmengine.fileio import dump

from vcmamba_mm.analysis.complexity import build_model, model_complexity
from vcmamba_mm.analysis.figures import new_figure, write_figure
from vcmamba_mm.analysis.resolution import SizeTiming, time_against_size
from vcmamba_mm.analysis.timing import FULL, QUICK, digits, table
from vcmamba_mm.training.command_line import LOOP_ERRORS, one_line_errors
from vcmamba_mm.training.errors import SETUP_ERRORS

DTYPES = ('float32', 'bfloat16', 'float16')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file, or name of a model')
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=[224, 384, 512, 768, 1024],
        metavar='SIZE',
        help='heights and widths in pixels (224 384 512 768 1024)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=32 if torch.cuda.is_available() else 4,
        help='images of a batch at the first size (%(default)s)',
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float32', help='of autocast'
    )
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='(%(default)s)',
    )
    parser.add_argument(
        '--threads', type=int, help='of PyTorch on the CPU, by default all'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='few rounds: whether it works, not how fast',
    )
    parser.add_argument(
        '--out', help='without suffix; work_dirs/benchmark/<name>_<device>'
    )
    return parser.parse_args()


def rows(timings: list[SizeTiming], macs: list[int]) -> list[list[str]]:
    return [
        [
            f'{t.shape[0]} x {t.shape[1]}',
            f'{n / 1e9:.2f}',
            str(t.one),
            str(t.batch_size),
            digits(t.throughput),
            digits(t.ms_per_megapixel),
        ]
        for t, n in zip(timings, macs)
    ]


def draw(timings: list[SizeTiming], title: str, out: str) -> None:
    figure, ((left, middle, right),) = new_figure(1, 3, cell=(4, 3.6))
    sizes = [t.shape[0] for t in timings]
    left.plot(sizes, [t.throughput for t in timings], 'o-', color='C0')
    left.set(title='Throughput, batches', ylabel='images / s', yscale='log')
    low, mid, high = zip(*(t.one.quartiles for t in timings))
    middle.plot(sizes, mid, 'o-', color='C1')
    middle.fill_between(sizes, low, high, color='C1', alpha=0.25)
    middle.set(title='Latency, one image', ylabel='ms', yscale='log')
    right.plot(sizes, [t.ms_per_megapixel for t in timings], 'o-', color='C2')
    right.set(title='Time of a million pixels', ylabel='ms, in batches')
    right.set_ylim(0, 1.3 * max(t.ms_per_megapixel for t in timings))
    for ax in (left, middle):
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for ax in (left, middle, right):
        ax.set_xscale('log')
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.set_xlabel('height and width, pixels')
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
        ax.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    figure.suptitle(title)
    write_figure(figure, f'{out}.png')


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with one_line_errors(*SETUP_ERRORS):
        model = build_model(args.config)
        shapes = [(size, size) for size in args.size]
    with one_line_errors(*LOOP_ERRORS):
        timings = time_against_size(
            model,
            shapes,
            args.batch_size,
            args.device,
            getattr(torch, args.dtype),
            model.backbone.in_channels,
            **(QUICK if args.quick else FULL),
        )
    macs = [model_complexity(model, shape)['total'].macs for shape in shapes]

    name = Path(args.config).stem
    out = args.out or f'work_dirs/benchmark/{name}_{args.device}'
    where = (
        torch.cuda.get_device_name()
        if args.device == 'cuda'
        else f'CPU, {torch.get_num_threads()} threads'
    )
    title = f'{name}, {args.dtype}, {where}, PyTorch {torch.__version__}'
    header = ['input', 'GMAC', 'ms, one image', 'batch', 'images / s']
    header.append('ms / megapixel')
    lines = [title, '', *table(header, rows(timings, macs))]
    first, last = timings[0], timings[-1]
    change = last.ms_per_megapixel / first.ms_per_megapixel - 1
    lines += [
        '',
        f'From {first.shape[0]} to {last.shape[0]} pixels the time of a '
        f'pixel changes by {change:+.0%} while their number grows '
        f'{(last.shape[0] / first.shape[0]) ** 2:.3g}-fold.',
    ]
    with one_line_errors(OSError):
        draw(timings, title, out)
        Path(f'{out}.md').write_text('\n'.join([*lines, '']))
        records = [dict(t.as_dict(), macs=n) for t, n in zip(timings, macs)]
        dump(dict(title=title, sizes=records), f'{out}.json', indent=1)
    print('\n'.join(lines))
    print(f'written: {out}.{{md,json,png}}')


if __name__ == '__main__':
    main()
