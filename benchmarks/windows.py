"""What MambaVision's padding costs: windows of fixed sizes against the map's.

Time and memory of the backbone, and how many tokens its blocks work on for
those that the map has.
"""

import argparse
import statistics
import time

import measure
import torch
from torch import Tensor, nn

from vcmamba_mm.analysis.timing import digits, table
from vcmamba_mm.models import MambaVision
from vcmamba_mm.models.mambavision.blocks import WindowBlocks

# Of the authors' classifiers and of their UperNet with S, and ours.
WINDOWS = ('map', (14, 7), (160, 56))
FORWARD, STEP = PASSES = 'forward', 'forward + backward'
ROUNDS = 3  # calls after the first one, whose memory is recorded
SLOW_SECONDS = 20  # a first call that takes longer is the only one


def build(
    arch: str | dict, window_size: tuple[int, ...] | str, device: str = 'cpu'
) -> MambaVision:
    with torch.device(device):
        return MambaVision(
            arch, out_indices=(0, 1, 2, 3), window_size=window_size
        )


def count_tokens(
    arch: str | dict, window_size: tuple[int, ...] | str, size: int
) -> list[tuple[int, int]]:
    """Of a picture's map and of its windows, for each stage with windows."""
    counts = []

    def count(blocks: nn.Module, maps: tuple[Tensor]) -> None:
        def count_windows(block: nn.Module, tokens: tuple[Tensor]) -> None:
            counts.append((maps[0][0, 0].numel(), tokens[0].shape[:2].numel()))
            hook.remove()

        hook = blocks[0].register_forward_pre_hook(count_windows)

    backbone = build(arch, window_size, 'meta').eval()
    for module in backbone.modules():
        if isinstance(module, WindowBlocks):
            module.register_forward_pre_hook(count)
    backbone(torch.empty(1, 3, size, size, device='meta'))
    return counts


def run(backbone: MambaVision, images: Tensor, task: str) -> dict:
    """Seconds of each call, and bytes that it allocates at its peak."""

    def call(_: int) -> None:
        if task == FORWARD:
            with torch.inference_mode():
                backbone.eval()(images)
            return
        backbone.train().zero_grad(set_to_none=True)
        sum(y.mean() for y in backbone(images)).backward()

    def seconds() -> float:
        begin = time.perf_counter()
        call(0)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    peak = measure.peak_memory(call, 'cpu')
    first = time.perf_counter() - begin
    times = [first]
    if first < SLOW_SECONDS:
        times = [seconds() for _ in range(ROUNDS)]
    return dict(seconds=times, peak_bytes=peak)


def report_lines(result: dict) -> list[str]:
    """The report of the JSON's content."""
    rows = []
    for row in result['results']:
        tokens = [f'{windows} for {real}' for real, windows in row['tokens']]
        rows.append([str(row['window_size']), *tokens])
        for task in result['passes']:
            its = row['passes'][task]
            rows[-1] += [
                digits(statistics.median(its['seconds'])),
                digits(its['peak_bytes'] / 2**20),
            ]
    header = ['windows', 'tokens, stage 3', 'tokens, stage 4']
    for task in result['passes']:
        header += [f'{task}, s', 'memory, MiB']
    size = result['size']
    return [
        "# MambaVision's windows",
        '',
        'Written by `benchmarks/windows.py`.',
        '',
        f'MambaVision-{result["arch"]}, the backbone with the maps of all '
        f'stages, a picture of {size} x {size} pixels, float32, random '
        'weights.',
        '',
        *table(header, rows),
        '',
        '- Tokens: those that the blocks work on, for those that the map has.',
        f'- Seconds are medians of {ROUNDS} calls after a first one; where '
        f'this takes more than {SLOW_SECONDS} s, it is the only one.',
        '- Memory is what PyTorch allocates at the peak of a call, above '
        'weights and input; gradients of the weights are in it.',
        *measure.environment_section(result['environment']),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_arguments(parser, ['cpu'])
    parser.add_argument('--passes', nargs='+', choices=PASSES, default=PASSES)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    arch, size = ('t', 64) if args.quick else ('s', 512)
    images = torch.randn(1, 3, size, size)
    results = []
    for window_size in WINDOWS[: 2 if args.quick else None]:
        backbone = build(arch, window_size)
        passes = {}
        for task in args.passes:
            passes[task] = run(backbone, images, task)
            print(f'{window_size}: {task}: {passes[task]}', flush=True)
        results.append(
            dict(
                window_size=window_size,
                tokens=count_tokens(arch, window_size, size),
                passes=passes,
            )
        )
    result = dict(
        benchmark='windows',
        device='cpu',
        quick=args.quick,
        arch=arch.upper(),
        size=size,
        passes=list(args.passes),
        environment=measure.environment('cpu'),
        results=results,
    )
    measure.write_report(args, 'windows', 'cpu', result, report_lines(result))


if __name__ == '__main__':
    main()
