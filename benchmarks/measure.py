"""How the benchmarks check and report.

Every contestant is checked against float64 before it is timed, by
:mod:`vcmamba_mm.analysis.timing`.
"""

import argparse
import itertools
import json
import os
import platform
import re
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FormatStrFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import vcmamba_mm
from vcmamba_mm.analysis.timing import (
    BUFFERS,
    SLOW_SECONDS,
    SLOW_WARM_UPS,
    Call,
    Timing,
    digits,
    table,
)

# Of the lines of a plot, by variant
DASHES = ('-', '--', ':', '-.', (0, (6, 4)), (0, (1, 4)), (0, (6, 2, 1, 2)))
MARKERS = 'osD^vPX'

# As Linux calls them
ISAS = ('avx', 'avx2', 'avx512f', 'avx512_bf16', 'amx_tile')
# Variables that forbid PyTorch, oneDNN, MKL and Numba some of them
ISA_LIMITS = (
    'ATEN_CPU_CAPABILITY',
    'ONEDNN_MAX_CPU_ISA',
    'DNNL_MAX_CPU_ISA',
    'MKL_ENABLE_INSTRUCTIONS',
    'NUMBA_CPU_NAME',
    'NUMBA_CPU_FEATURES',
)


class WrongResultError(RuntimeError):
    """A contestant that computes something else."""


def ratio(timing: Timing, baseline: Timing) -> str:
    """How many times faster, for a table."""
    if timing is baseline:
        return '1'
    if timing.equals(baseline):
        return 'noise'
    return f'{timing.times_faster_than(baseline):.2f}'


def notes(timings: dict[str, Timing]) -> list[str]:
    """How times are shown, and what was warmed up less; lines of a list."""
    lines = [
        '- Times are medians of the two entries of each contestant, and in '
        'brackets the quartiles of both together. *Noise* is a difference '
        'not larger than that between two entries of the same contestant.'
    ]
    slow = [
        name
        for name, timing in timings.items()
        if timing.warm_ups == SLOW_WARM_UPS
    ]
    if slow:
        lines.append(
            f'- Only {SLOW_WARM_UPS} warm-ups (a call takes more than '
            f'{SLOW_SECONDS:g} s): {"; ".join(slow)}.'
        )
    return lines


def in_cuda_graph(call: Call) -> Call:
    """The same launches without Python: what the device itself takes."""
    graphs = []
    for i in range(BUFFERS):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call(i)
        torch.cuda.current_stream().wait_stream(stream)
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[i]):
            call(i)
    return lambda i: graphs[i].replay()


def peak_memory(call: Call, device: str) -> int:
    """Bytes that a call allocates at its peak, above what was there before.

    On a CPU from the allocations and frees that PyTorch's profiler records:
    unlike the resident memory of the process that is exact and repeatable,
    and the same quantity as the CUDA allocator's peak.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # its start and stop
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True
    ) as recorded:
        call(0)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == '[memory]'
    )
    return max(itertools.accumulate(size for _, size in changes), default=0)


def check(
    name: str, result: Tensor, expected: Tensor, tolerance: float
) -> float:
    """Compare with what float64 gives; return the largest error.

    The error is relative to the largest magnitude expected.

    Raises:
        WrongResultError: If it exceeds ``tolerance``, or is not a number.
    """
    difference = (result.double() - expected).abs().max()
    error = float(difference / expected.abs().max())
    if not error <= tolerance:
        raise WrongResultError(
            f'{name} is wrong: relative error {error:.1e} to float64, '
            f'allowed are {tolerance:.0e}'
        )
    return error


@dataclass(frozen=True)
class Goal:
    """A goal and what was measured; ``at_most`` turns the sense around."""

    name: str
    measured: float
    must: float | None = None
    aim: float | None = None
    unit: str = '\u00d7'
    at_most: bool = False

    @property
    def verdict(self) -> str:
        def holds(bound: float | None) -> bool:
            return bound is not None and (
                self.measured <= bound
                if self.at_most
                else self.measured >= bound
            )

        if holds(self.aim):
            return 'aim reached'
        if self.must is None:
            return 'aim not reached'
        return 'reached' if holds(self.must) else 'not reached'

    def row(self) -> list[str]:
        sense = '\u2264' if self.at_most else '\u2265'
        bounds = (
            '' if bound is None else f'{sense} {bound:g} {self.unit}'
            for bound in (self.must, self.aim)
        )
        measured = f'{digits(self.measured)} {self.unit}'
        return [self.name, measured, *bounds, self.verdict]


def goals_section(goals: list[Goal]) -> list[str]:
    if not goals:
        return []
    header = ['goal', 'measured', 'must', 'aim', '']
    return ['', '## Goals', '', *table(header, [g.row() for g in goals])]


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; '' elsewhere."""
    cpuinfo = Path('/proc/cpuinfo')
    text = cpuinfo.read_text() if cpuinfo.exists() else ''
    found = re.search(rf'^{key}\s*: (.+)', text, re.MULTILINE)
    return found[1] if found else ''


def instruction_sets() -> dict[str, str]:
    """Those of the processor, and which of them the libraries may use."""
    flags = set(_cpuinfo('flags').split())
    limits = [
        f'{name}={os.environ[name]}'
        for name in ISA_LIMITS
        if name in os.environ
    ]
    return {
        'instruction sets': ', '.join(i for i in ISAS if i in flags),
        'used by PyTorch': torch.backends.cpu.get_cpu_capability(),
        'limited by': ', '.join(limits) or 'nothing',
    }


def environment(device: str) -> dict[str, str]:
    """What a time depends on."""
    packages = {}
    for name in ('triton', 'mamba-ssm', 'timm', 'mambavision', 'opt-einsum'):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = 'not installed'
    env = dict(
        date=date.today().isoformat(),
        cpu=f'{_cpuinfo("model name") or platform.machine()}, '
        f'{os.cpu_count()} cores',
        **instruction_sets(),
        threads=str(torch.get_num_threads()),
        load=f'{os.getloadavg()[0]:.1f} at the end',
        python=platform.python_version(),
        torch=torch.__version__,
        vcmamba_mm=vcmamba_mm.__version__,
        **packages,
    )
    if device == 'cuda':
        cudnn = torch.backends.cudnn
        env |= dict(
            gpu=torch.cuda.get_device_name(),
            cuda=str(torch.version.cuda),
            cudnn=str(cudnn.version()),
            tf32=f'matmul {torch.backends.cuda.matmul.allow_tf32}, '
            f'convolution {cudnn.allow_tf32}',
        )
        env['cudnn.benchmark'] = str(cudnn.benchmark)
    return env


def environment_section(env: dict[str, str]) -> list[str]:
    return ['', '## Environment', '', *table(['', ''], list(env.items()))]


def line_plot(
    panels: dict[str, dict[tuple[str, str], tuple[list, list]]],
    xlabel: str,
    ylabel: str = '',
) -> Figure:
    """Log-log panels side by side.

    Args:
        panels: For each title the lines; for each (contestant, variant) its x
            and y. A contestant has one colour, a variant one style.
        xlabel: Below each panel.
        ylabel: At the left, of all panels; without it each has a scale of its
            own, which its title names.
    """
    figure = Figure(figsize=(4 + 4 * len(panels), 5.4), layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=bool(ylabel), squeeze=False)[
        0
    ]
    keys = dict.fromkeys(key for panel in panels.values() for key in panel)
    colors = {
        name: i for i, name in enumerate(dict.fromkeys(k[0] for k in keys))
    }
    styles = {
        variant: i
        for i, variant in enumerate(dict.fromkeys(k[1] for k in keys))
    }
    handles = {}
    for axis, (title, panel) in zip(axes, panels.items()):
        for key, (x, y) in panel.items():
            name, variant = key
            (handles[', '.join(filter(None, key))],) = axis.loglog(
                x,
                y,
                color=f'C{colors[name]}',
                linestyle=DASHES[styles[variant]],
                marker=MARKERS[styles[variant]],
                markersize=5,
                markerfacecolor='white' if styles[variant] else None,
            )
        axis.set(title=title, xlabel=xlabel)
        ticks = sorted({value for x, _ in panel.values() for value in x})
        axis.set_xticks(ticks, map(str, ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 3, 5), numticks=99)
        )
        axis.yaxis.set_major_formatter(FormatStrFormatter('%g'))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel(ylabel)
    figure.legend(
        handles.values(),
        handles,
        loc='outside lower center',
        ncols=2,
        frameon=False,
    )
    return figure


def add_arguments(
    parser: argparse.ArgumentParser, devices: list[str] | None = None
) -> None:
    """Add the arguments that the benchmarks have in common.

    Args:
        parser: Is changed.
        devices: To choose from; by default every one found.
    """
    devices = devices or ['cpu'] + ['cuda'] * torch.cuda.is_available()
    parser.add_argument(
        '--device',
        nargs='+',
        choices=devices,
        default=devices,
        help='by default all of them',
    )
    parser.add_argument(
        '--threads', type=int, default=1, help='of PyTorch on the CPU'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='tiny sizes, few rounds: whether it works, not how fast',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='folder of the results; by default benchmarks/results, or '
        'work_dirs/benchmarks with --quick',
    )


def write_report(
    args: argparse.Namespace,
    name: str,
    device: str,
    result: dict,
    lines: list[str],
    figure: Figure | None = None,
) -> None:
    """Write ``<name>_<device>`` as Markdown, JSON and, if drawn, PNG."""
    here = Path(__file__).resolve().parent
    folder = args.out or (
        here.parent / 'work_dirs/benchmarks'
        if args.quick
        else here / 'results'
    )
    folder.mkdir(parents=True, exist_ok=True)
    if device == 'cuda':
        device = torch.cuda.get_device_name()
    stem = f'{name}_{re.sub("[^a-z0-9]+", "_", device.lower())}'
    if args.quick:
        lines = ['**A quick run: these figures say nothing.**', '', *lines]
    if figure:
        lines = [*lines, '', f'![Plot]({stem}.png)']
        figure.savefig(folder / f'{stem}.png', dpi=150)
    text = '\n'.join([*lines, ''])
    (folder / f'{stem}.md').write_text(text, encoding='utf-8')
    content = json.dumps(result, indent=1, allow_nan=False)
    (folder / f'{stem}.json').write_text(content + '\n', encoding='utf-8')
    written = 'md,json,png' if figure else 'md,json'
    print(f'\n{text}\nwritten: {folder / stem}.{{{written}}}', flush=True)
