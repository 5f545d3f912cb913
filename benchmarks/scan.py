"""Time and memory of the scan, as the families use it.

All backends that run here against the way the released models do it, which is
a selective scan for each path, between a gather and its inverse. The reference
backend is the specification and not timed.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import measure
import torch
import torch.nn.functional as F
from measure import Goal
from released_like import RELEASED, path_by_path, selective_scans
from torch import Tensor

from vcmamba_mm.analysis.timing import (
    BUFFERS,
    FULL,
    QUICK,
    Timing,
    digits,
    table,
    time_side_by_side,
)
from vcmamba_mm.ops import available_backends, path_scan
from vcmamba_mm.ops.scan_inputs import Options, Tensors
from vcmamba_mm.ops.scan_paths import PATHS

TOLERANCE = 1e-4
FORWARD, BOTH = 'forward', 'forward + backward'
GRAPH = ', CUDA graph'

# paths, whether snakes, whose parameters a step uses, whether paths have own
FAMILIES = dict(
    VCMamba=(PATHS, True, 'raster', False),
    VMamba=(
        ('row', 'column', 'row_reverse', 'column_reverse'),
        False,
        'path',
        True,
    ),
    MambaVision=(('row',), False, 'raster', False),
)


class Case(NamedTuple):
    """A size; channels and states by default those of VCMamba-B."""

    batch: int
    height: int
    width: int
    channels: int = 1024
    states: int = 16
    family: str = 'VCMamba'

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def own(self) -> bool:
        """Whether each path has parameters of its own."""
        return FAMILIES[self.family][3]

    @property
    def options(self) -> Options:
        paths, snake, param_order, _ = FAMILIES[self.family]
        return Options(self.height, self.width, paths, snake, param_order)

    def __str__(self) -> str:
        return (
            f'{self.family}, batch {self.batch}, {self.tokens} tokens, '
            f'{self.channels} channels'
        )


# stage 4 of VCMamba-B at 224, 512 and 1024 pixels
BATCH_ONE = [Case(1, 7, 7), Case(1, 16, 16), Case(1, 32, 32)]
# stages 1 and 3 of VMamba-T, stage 3 of MambaVision-T
VMAMBA_1 = Case(1, 56, 56, 96, 1, 'VMamba')
VMAMBA_3 = Case(1, 14, 14, 384, 1, 'VMamba')
MAMBAVISION = Case(4, 14, 14, 160, 8, 'MambaVision')
CASES = dict(
    cpu=[*BATCH_ONE, Case(8, 7, 7), VMAMBA_1, VMAMBA_3, MAMBAVISION],
    cuda=[
        *BATCH_ONE,
        *(Case(128, 7, 7), Case(16, 16, 16), Case(4, 32, 32)),
        *(case._replace(batch=128) for case in (VMAMBA_1, VMAMBA_3)),
        MAMBAVISION._replace(batch=128),
    ],
)
QUICK_CASES = [Case(1, 2, 2, 8, 4), Case(2, 3, 4, 8, 1, 'VMamba')]

# pass, case: times faster than the baseline, and on the GPU milliseconds,
# that must be and that are aimed at
GOALS = dict(
    cpu={
        (FORWARD, Case(1, 7, 7)): dict(times=(4, 15)),
        (FORWARD, Case(8, 7, 7)): dict(times=(45, 80)),
        (FORWARD, Case(1, 16, 16)): dict(times=(6, 15)),
        (FORWARD, VMAMBA_1): dict(times=(30, 60)),
        (FORWARD, VMAMBA_3): dict(times=(30, 60)),
        (FORWARD, MAMBAVISION): dict(times=(10, 30)),
        (BOTH, Case(8, 7, 7)): dict(times=(22.5, 40)),
        (BOTH, VMAMBA_1): dict(times=(15, 30)),
        (BOTH, VMAMBA_3): dict(times=(15, 30)),
        (BOTH, MAMBAVISION): dict(times=(5, 15)),
    },
    cuda={
        (FORWARD + GRAPH, Case(128, 7, 7)): dict(
            times=(5, None), ms=(0.1, 0.065)
        ),
        (FORWARD + GRAPH, Case(16, 16, 16)): dict(
            times=(5, None), ms=(0.07, 0.045)
        ),
        (FORWARD + GRAPH, Case(4, 32, 32)): dict(
            times=(5, None), ms=(0.11, 0.07)
        ),
        (BOTH + GRAPH, Case(128, 7, 7)): dict(times=(3, None), ms=(0.7, 0.45)),
    },
)
LESS_MEMORY, LESS_MEMORY_TOKENS = 3, 1024

Scan = Callable[[Tensors, Options], Tensor]


def by_backend(backend: str) -> Scan:
    def scan(tensors: Tensors, options: Options) -> Tensor:
        return path_scan(
            *tensors[:6],
            *options[:2],
            paths=options.paths,
            snake=options.snake,
            param_order=options.param_order,
            direction_B=tensors.direction_B,
            backend=backend,
        )

    return scan


def contestants(device: str) -> dict[str, Scan]:
    """Scans by name, those of a path at a time first."""
    scans = {
        name: partial(path_by_path, selective_scan)
        for name, selective_scan in selective_scans(device).items()
    }
    # Without a GPU Triton's interpreter would do.
    elsewhere = ('numba',) if device == 'cuda' else ('triton', 'mamba_ssm')
    for backend, reason in available_backends().items():
        if reason is None and backend not in ('reference', *elsewhere):
            scans[backend] = by_backend(backend)
    return scans


def random_inputs(case: Case, device: str) -> list[Tensor]:
    """The tensors, delta as after softplus, and a gradient of y."""
    own = len(case.options.paths) if case.own else 1
    tokens = case.batch, case.tokens
    tensors = [
        torch.randn(*tokens, case.channels),
        F.softplus(torch.randn(*tokens, own, case.channels)),
        -torch.arange(1.0, case.states + 1).repeat(own, case.channels, 1),
        torch.randn(*tokens, own, case.states),
        torch.randn(*tokens, own, case.states),
        torch.ones(own, case.channels),
        torch.randn(*tokens, case.channels),
    ]
    if case.options.snake:  # theta is VCMamba's
        tensors.insert(6, torch.randn(5, case.states))
    return [t.to(device) for t in tensors]


def run(scan: Scan, inputs: list[Tensor], case: Case) -> Tensor:
    with torch.no_grad():
        return scan(Tensors(*inputs[:-1]), case.options)


def run_with_grads(
    scan: Scan, inputs: list[Tensor], case: Case
) -> tuple[Tensor, ...]:
    """y and the gradients of all tensors."""
    *tensors, grad_y = inputs
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = scan(Tensors(*tensors), case.options)
    return y.detach(), *torch.autograd.grad(y, tensors, grad_y)


def check_all(
    scans: dict[str, Scan],
    inputs: list[Tensor],
    case: Case,
    with_grads: bool,
) -> dict[str, float]:
    """The largest error of each contestant.

    Raises:
        measure.WrongResultError: If one is not within ``TOLERANCE``.
    """
    reference = by_backend('reference')
    in_float64 = [t.double() for t in inputs]

    def results(scan: Scan, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        if with_grads:
            return run_with_grads(scan, inputs, case)
        return (run(scan, inputs, case),)

    expected = results(reference, in_float64)
    return {
        name: max(
            measure.check(f'{what} of {name} ({case})', *pair, TOLERANCE)
            for what, *pair in zip(
                ('y', *Tensors._fields), results(scan, inputs), expected
            )
        )
        for name, scan in scans.items()
    }


def measure_case(
    scans: dict[str, Scan],
    case: Case,
    device: str,
    effort: dict,
    with_grads: bool,
) -> dict[str, dict]:
    """Errors, times of each pass and peak memory of each contestant."""
    buffers = [random_inputs(case, device) for _ in range(BUFFERS)]
    errors = check_all(scans, buffers[0], case, with_grads)
    results = {
        name: dict(error=error, passes={}) for name, error in errors.items()
    }
    for label, runner in ((FORWARD, run), (BOTH, run_with_grads)):
        calls = {
            name: lambda i, scan=scan, runner=runner: runner(
                scan, buffers[i], case
            )
            for name, scan in scans.items()
        }
        variants = {label: calls}
        if device == 'cuda':
            variants[label + GRAPH] = {
                name: measure.in_cuda_graph(call)
                for name, call in calls.items()
            }
        for variant, its_calls in variants.items():
            timings = time_side_by_side(its_calls, device, **effort)
            for name, timing in timings.items():
                results[name]['passes'][variant] = timing
                print(f'{case}: {name}, {variant}: {timing} ms', flush=True)
    for name, call in calls.items():
        results[name]['peak_bytes'] = measure.peak_memory(call, device)
    return results


def own_backends(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in ('torch', 'numba', 'triton')]


def check_goals(
    device: str, results: dict[Case, dict[str, dict]], baseline: str
) -> list[Goal]:
    """Compare the fastest of our backends with the goals."""
    goals = []
    for (label, case), goal in GOALS[device].items():
        if case not in results:
            continue
        timings: dict[str, Timing] = {
            name: result['passes'][label]
            for name, result in results[case].items()
        }
        ours = min(
            own_backends(timings),
            key=lambda name: timings[name].median,
        )
        name = f'{label}, {case}: {ours}'
        if baseline == RELEASED[device]:
            goals.append(
                Goal(
                    f'{name} against {baseline}',
                    timings[ours].times_faster_than(timings[baseline]),
                    *goal['times'],
                )
            )
        if 'ms' in goal:
            goals.append(
                Goal(
                    name,
                    timings[ours].median,
                    *goal['ms'],
                    unit='ms',
                    at_most=True,
                )
            )
    for case, its in results.items():
        if case.tokens == LESS_MEMORY_TOKENS:
            goals += [
                Goal(
                    f'peak memory, {case}: {name} against selective_scan_ref',
                    its['selective_scan_ref']['peak_bytes']
                    / its[name]['peak_bytes'],
                    must=LESS_MEMORY,
                    unit='\u00d7 less',
                )
                for name in own_backends(its)
            ]
    return goals


def caption(device: str, baseline: str, results: dict) -> list[str]:
    """What the figures mean."""
    first = next(iter(results))
    timings = {
        f'{name} ({label}, {case})': timing
        for case, its in results.items()
        for name, result in its.items()
        for label, timing in result['passes'].items()
    }
    peak = (
        "by the CUDA allocator's peak"
        if device == 'cuda'
        else "from the allocations that PyTorch's profiler records"
    )
    return [
        'float32. "\u00d7" is how many times faster than the baseline, '
        f'**{baseline}**, one call for each path.',
        '',
        *measure.notes(timings),
        '- VCMamba and MambaVision share the parameters of all paths, in '
        'raster order; VMamba has own ones, which follow the tokens. States: '
        '16, 8 and 1.',
        f'- `{baseline}` is called as the released models do it: tokens '
        'transposed to (batch, channels, tokens), a selective scan for each '
        'path, between a gather by the path and its inverse. The index tables '
        'come from a cache here; the releases make them anew in Python in '
        'every forward pass, which is not in these times. '
        '`selective_scan_ref` '
        "takes the steps by `unbind`: with mamba-ssm's indexing its backward "
        'pass would be quadratic in the number of tokens.',
        f'- Peak memory is what forward + backward allocates, {peak}; the '
        'inputs are not in it, the gradients are.',
        '- Outputs were checked against the reference in float64 at each '
        f'size, all gradients at {first}; "error" is the largest, relative '
        'to the largest magnitude.',
        *(
            f'- Not here: `{name}`: {reason}'
            for name, reason in available_backends().items()
            if reason is not None
        ),
    ]


def report_lines(
    device: str, results: dict, baseline: str, goals: list[Goal], env: dict
) -> list[str]:
    labels = next(iter(next(iter(results.values())).values()))['passes']
    rows = []
    for case, its in results.items():
        base = its[baseline]
        for name, result in its.items():
            row = [case.family, *map(str, case[:1]), str(case.tokens), name]
            for label, timing in result['passes'].items():
                row += [
                    str(timing),
                    measure.ratio(timing, base['passes'][label]),
                ]
            memory = result['peak_bytes']
            row += [
                digits(memory / 2**20),
                f'{memory / base["peak_bytes"]:.2f}',
                f'{result["error"]:.0e}',
            ]
            rows.append(row)
    header = ['family', 'batch', 'tokens', 'contestant']
    for label in labels:
        header += [f'{label}, ms', '\u00d7']
    header += ['peak memory, MiB', 'of baseline', 'error']
    return [
        '# The scan',
        '',
        'Written by `benchmarks/scan.py`.',
        '',
        *table(header, rows),
        '',
        *caption(device, baseline, results),
        *measure.goals_section(goals),
        *measure.environment_section(env),
    ]


def plot(results: dict[Case, dict[str, dict]]) -> 'measure.Figure':
    """Time per image against tokens."""
    panels = {FORWARD: {}, BOTH: {}}
    for case in sorted(results, key=lambda case: case.tokens):
        if case.family != 'VCMamba':
            continue
        for name, result in results[case].items():
            key = name, '' if case.batch == 1 else 'larger batch'
            for label, panel in panels.items():
                x, y = panel.setdefault(key, ([], []))
                x.append(case.tokens)
                y.append(result['passes'][label].median / case.batch)
    return measure.line_plot(panels, 'tokens', 'ms per image')


def parse_case(text: str) -> Case:
    return Case(*map(int, text.split('x')))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_arguments(parser)
    parser.add_argument(
        '--cases',
        nargs='+',
        type=parse_case,
        metavar='BATCHxHEIGHTxWIDTH',
        help='instead of the usual sizes, e.g. 1x7x7 8x16x16',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    effort = QUICK if args.quick else FULL
    for device in args.device:
        begin = time.perf_counter()
        cases = args.cases or (QUICK_CASES if args.quick else CASES[device])
        scans = contestants(device)
        baseline = [*selective_scans(device)][-1]
        results = {
            case: measure_case(
                scans, case, device, effort, with_grads=case == cases[0]
            )
            for case in cases
        }
        goals = check_goals(device, results, baseline)
        env = measure.environment(device)
        env['wall time'] = f'{time.perf_counter() - begin:.0f} s'
        result = dict(
            benchmark='scan',
            device=device,
            quick=args.quick,
            baseline=baseline,
            environment=env,
            results=[
                dict(
                    case._asdict(),
                    contestant=name,
                    error=result['error'],
                    peak_bytes=result['peak_bytes'],
                    passes={
                        label: timing.as_dict()
                        for label, timing in result['passes'].items()
                    },
                )
                for case, its in results.items()
                for name, result in its.items()
            ],
            goals=[dict(asdict(g), verdict=g.verdict) for g in goals],
        )
        measure.write_report(
            args,
            'scan',
            device,
            result,
            report_lines(device, results, baseline, goals, env),
            plot(results),
        )


if __name__ == '__main__':
    main()
