"""Time of the backbones: inference and a training step, against resolution.

Ours as they are, in channels_last, compiled, in their deployment form, with
the scan done the way the released models do it and with none, against models
of timm.
"""

import argparse
import time
from dataclasses import asdict
from typing import NamedTuple

import measure
import torch
from backbones import (
    CHANNELS_LAST,
    COMPILED,
    CUDA_GRAPHS,
    FUSED,
    INFERENCE,
    NO_SCAN,
    OPTIMIZED,
    PLAIN,
    RELEASED_LIKE,
    TASKS,
    TRAINING,
    Contestant,
    build,
    check_model,
    float64_features,
    make_call,
    mambavision,
    mambavisions,
    plainmambas,
    prepare,
    released_mambavision,
    timm,
    timm_models,
    vcmambas,
    vmambas,
)
from measure import Goal
from released_like import RELEASED, selective_scans

from vcmamba_mm.analysis.timing import (
    BUFFERS,
    FULL,
    QUICK,
    Timing,
    digits,
    table,
    time_side_by_side,
)

SIZES = (224, 384, 512, 768, 1024)


class Case(NamedTuple):
    task: str
    size: int
    batch: int

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2

    def __str__(self) -> str:
        return f'{self.task}, {self.size} pixels, batch {self.batch}'


Plan = dict[Case, list[Contestant]]


def series_batch(device: str, size: int) -> int:
    """Batch of the series over sizes: on a GPU the pixels stay the same."""
    return 1 if device == 'cpu' else round(128 * (224 / size) ** 2)


def gpu_plan() -> Plan:
    """All models at all sizes."""
    plan = {
        Case(task, size, series_batch('cuda', size)): [
            *vcmambas('SMB' if size == 224 else 'B', RELEASED_LIKE),
            *vcmambas('SMB', PLAIN, CHANNELS_LAST),
            *vmambas(*[RELEASED_LIKE] * (size == 224), PLAIN),
            *mambavisions(*[RELEASED_LIKE] * (size == 224), CHANNELS_LAST),
            *plainmambas(*[RELEASED_LIKE] * (size == 224), PLAIN),
            *timm_models(size),
        ]
        for task in TASKS
        for size in SIZES
    }
    deployed = vcmambas('B', PLAIN, FUSED, OPTIMIZED, CUDA_GRAPHS)
    plan[Case(INFERENCE, 224, 128)] += deployed[1:]
    plan[Case(INFERENCE, 224, 1)] = deployed
    plan[Case(TRAINING, 224, 128)] += vcmambas('B', COMPILED)
    return plan


def cpu_plan() -> Plan:
    """What one thread can do in half an hour."""
    batches = {
        Case(task, 224, 4): [
            *vcmambas('B', RELEASED_LIKE),
            *vcmambas(plain, PLAIN),
            *vcmambas('SMB', CHANNELS_LAST),
            *vmambas(PLAIN),
            *mambavisions(PLAIN),
            *plainmambas(PLAIN),
            *timm_models(224),
        ]
        for task, plain in ((INFERENCE, 'SMB'), (TRAINING, 'B'))
    }
    series = {
        Case(INFERENCE, size, series_batch('cpu', size)): [
            *vcmambas('B' if size <= 512 else '', RELEASED_LIKE),
            *vcmambas('SMB', CHANNELS_LAST),
            *vmambas(PLAIN),
            *mambavisions(PLAIN),
            *plainmambas(PLAIN),
            *timm_models(size),
        ]
        for size in SIZES
    }
    plan = batches | series
    for case in (Case(INFERENCE, 224, 4), Case(INFERENCE, 224, 1)):
        plan[case] += vcmambas('B', FUSED, OPTIMIZED) + vmambas(NO_SCAN)
        plan[case] += mambavisions(NO_SCAN, FUSED) + released_mambavision()
        plan[case] += plainmambas(NO_SCAN)
    plan[Case(INFERENCE, 224, 1)] += vcmambas('B', PLAIN)
    return plan


def quick_plan() -> Plan:
    ours = vcmambas('S', RELEASED_LIKE, CHANNELS_LAST, PLAIN, FUSED)
    return {
        Case(INFERENCE, 64, 1): [
            *ours,
            *vmambas(RELEASED_LIKE, PLAIN, NO_SCAN),
            *mambavisions(PLAIN, NO_SCAN),
            *plainmambas(PLAIN, NO_SCAN),
            *released_mambavision(),
            *timm_models(64)[:1],
        ],
        Case(INFERENCE, 96, 1): ours[:1],
        Case(TRAINING, 64, 2): ours[:2],
    }


def measure_case(
    case: Case, contestants: list[Contestant], device: str, effort: dict
) -> dict[Contestant, dict]:
    """Parameters, error and times of each contestant."""
    shape = case.batch, 3, case.size, case.size
    buffers = [torch.randn(shape, device=device) for _ in range(BUFFERS)]
    calls, results = {}, {}
    torch.compiler.reset()
    for contestant in contestants:
        model = build(contestant.model, case.size).to(device)
        params = sum(p.numel() for p in model.parameters())
        expected = float64_features(
            model, contestant.variant, buffers[0][:1], device
        )
        forward = prepare(model, contestant.variant, device)
        error = check_model(
            contestant, model, forward, buffers[0], expected, device
        )
        calls[contestant] = make_call(
            model, forward, case.task, buffers, device
        )
        results[contestant] = dict(params=params, error=error)
    timings = time_side_by_side(calls, device, **effort)
    for contestant, timing in timings.items():
        results[contestant]['timing'] = timing
        print(f'{case}: {contestant}: {timing} ms', flush=True)
    return results


Results = dict[Case, dict[Contestant, dict]]


def check_goals(device: str, results: Results) -> list[Goal]:
    """Compare VCMamba-B, VMamba-T and MambaVision-T with the goals."""
    goals = []

    def add(
        case: Case,
        ours: Contestant,
        rival: Contestant,
        must: float,
        aim: float | None = None,
        at_most: bool = False,
    ) -> None:
        """How many times faster ours is, or slower ``at_most``."""
        its = results.get(case, {})
        if not {ours, rival} <= set(its):
            return
        times = its[ours]['timing'].times_faster_than(its[rival]['timing'])
        name = f'{case}: {ours} against {rival}'
        if at_most:
            name, times = f'{case}: {ours}, time over {rival}', 1 / times
        goals.append(Goal(name, times, must, aim, at_most=at_most))

    baseline = Contestant('VCMamba-B', RELEASED_LIKE)

    def against_baseline(case: Case, must: float, aim: float | None) -> None:
        timings: dict[Contestant, Timing] = {
            contestant: result['timing']
            for contestant, result in results.get(case, {}).items()
            if contestant.model == 'VCMamba-B'
        }
        if baseline not in timings:
            return
        best = min(timings, key=lambda name: timings[name].median)
        times = timings[best].times_faster_than(timings[baseline])
        if list(selective_scans(device))[-1] == RELEASED[device]:
            name = f'{case}: {best} against {baseline}'
            goals.append(Goal(name, times, must, aim))
        if device == 'cuda' and case.task == INFERENCE:
            rate = 1000 * case.batch / timings[best].median
            goals.append(
                Goal(f'{case}: {best}', rate, 15e3, 25e3, unit='img/s')
            )

    if device == 'cpu':
        case = Case(INFERENCE, 224, 4)
        against_baseline(case, 1.5, 2.2)
        add(case, *vcmambas('B', FUSED, PLAIN), 1.3)
        rival = Contestant('convnext_tiny', CHANNELS_LAST)
        for case, variant, must, aim in (
            (Case(INFERENCE, 224, 1), FUSED, 1, 1.2),
            (Case(INFERENCE, 224, 4), FUSED, 1, 1.2),
            (Case(INFERENCE, 224, 1), PLAIN, 1 / 1.15, None),
            (Case(INFERENCE, 224, 4), PLAIN, 1 / 1.15, None),
            (Case(TRAINING, 224, 4), PLAIN, 1, None),
        ):
            add(case, *vcmambas('B', variant), rival, must, aim)
        for batch in (1, 4):
            case = Case(INFERENCE, 224, batch)
            add(case, *vmambas(PLAIN, NO_SCAN), 1.3, 1.15, at_most=True)
            add(case, *mambavisions(PLAIN, NO_SCAN), 1.2, at_most=True)
        return goals
    against_baseline(Case(INFERENCE, 224, 128), 2.5, None)
    against_baseline(Case(TRAINING, 224, 128), 2, 3)
    add(Case(INFERENCE, 224, 128), *vmambas(PLAIN, RELEASED_LIKE), 1.5, 3)
    add(
        Case(INFERENCE, 224, 128),
        *mambavisions(CHANNELS_LAST, RELEASED_LIKE),
        1.2,
    )
    contestant = Contestant('VCMamba-B', CHANNELS_LAST)
    per_pixel = {
        case.size: its[contestant]['timing'].median / case.pixels
        for case, its in results.items()
        if case.task == INFERENCE and contestant in its
    }
    if set(SIZES) <= set(per_pixel):
        goals.append(
            Goal(
                f'{INFERENCE}: {contestant}: largest over smallest time per '
                'pixel, 224 to 1024 pixels',
                max(per_pixel.values()) / min(per_pixel.values()),
                must=1.1,
                at_most=True,
            )
        )
    return goals


def report_lines(
    device: str, results: Results, goals: list[Goal], env: dict
) -> list[str]:
    header = ['model', 'variant', 'params, M', 'ms per batch', 'img/s']
    header += ['ns per pixel', '\u00d7', 'error']
    lines = ['# Backbones', '', 'Written by `benchmarks/model.py`.']
    for case, its in results.items():
        rows = []
        for contestant, result in its.items():
            timing = result['timing']
            base = its.get(Contestant(contestant.model, RELEASED_LIKE))
            rows.append(
                [
                    *contestant,
                    f'{result["params"] / 1e6:.2f}',
                    str(timing),
                    digits(1000 * case.batch / timing.median),
                    digits(1e6 * timing.median / case.pixels),
                    measure.ratio(timing, base['timing']) if base else '',
                    f'{result["error"]:.0e}',
                ]
            )
        title = f'{case}'.capitalize()
        lines += ['', f'## {title}', '', *table(header, rows)]
    scan = list(selective_scans(device))[-1]
    precision = 'bfloat16 autocast' if device == 'cuda' else 'float32'
    timings = {
        f'{contestant} ({case})': result['timing']
        for case, its in results.items()
        for contestant, result in its.items()
    }
    lines += [
        '',
        '## What the figures mean',
        '',
        f'Random weights and inputs, {precision}; pooled features, no '
        'classifier; a training step is forward, backward and AdamW. '
        '"\u00d7" is how many times faster than the same model, '
        'released-like.',
        '',
        *measure.notes(timings),
        '- released-like: our model in contiguous NCHW with the scan done '
        f'by four calls of `{scan}`, with transposes, a gather before and '
        'the inverse gather after each (see `scan.py`).',
        '- without its scans: tokens leave each scan as they come; '
        'projections and the rest are computed.',
        '- fused: `vcmamba_mm.deploy.fuse`; fused, compiled: '
        '`vcmamba_mm.deploy.optimize`. The time to compile does not count.',
        '- Each model was checked against itself in float64 (ours with '
        'the reference scan); "error" is relative to the largest feature.',
    ]
    if scan != RELEASED[device]:
        lines.append(
            f'- `{RELEASED[device]}` is not here: goals against it have not '
            'been measured.'
        )
    if timm is None:
        lines.append('- timm is not installed: none of its models is here.')
    if mambavision is None:
        lines.append(
            "- The authors' package mambavision cannot be imported: their "
            'MambaVision-T is not here.'
        )
    return [
        *lines,
        *measure.goals_section(goals),
        *measure.environment_section(env),
    ]


def plot(device: str, results: Results) -> 'measure.Figure':
    """Time per pixel against size, of tasks with several sizes if any has."""
    panels = {}
    for case, its in results.items():
        if case.batch != series_batch(device, case.size):
            continue
        panel = panels.setdefault(case.task, {})
        for contestant, result in its.items():
            x, y = panel.setdefault(contestant, ([], []))
            x.append(case.size)
            y.append(1e6 * result['timing'].median / case.pixels)
    series = {
        task: panel
        for task, panel in panels.items()
        if any(len(x) > 1 for x, _ in panel.values())
    }
    return measure.line_plot(
        series or panels, 'height and width, pixels', 'ns per pixel'
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_arguments(parser)
    parser.add_argument(
        '--sizes', nargs='+', type=int, help='only these of the usual ones'
    )
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=TASKS)
    parser.add_argument(
        '--models', nargs='+', help='only these, such as VMamba-T'
    )
    parser.add_argument(
        '--rounds',
        type=int,
        help='samples of each of the two entries, '
        f'{FULL["rounds"]} as a rule; more where the differences looked for '
        'are small',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    effort = dict(QUICK if args.quick else FULL)
    if args.rounds:
        effort['rounds'] = args.rounds
    for device in args.device:
        begin = time.perf_counter()
        plan = (
            quick_plan()
            if args.quick
            else gpu_plan()
            if device == 'cuda'
            else cpu_plan()
        )
        results = {}
        for case, contestants in plan.items():
            if case.task not in args.tasks or (
                args.sizes and case.size not in args.sizes
            ):
                continue
            if args.models:
                contestants = [
                    c for c in contestants if c.model in args.models
                ]
            if contestants:
                results[case] = measure_case(case, contestants, device, effort)
        if not results:
            parser.error('nothing to measure: no such sizes or models')
        goals = check_goals(device, results)
        env = measure.environment(device)
        env['wall time'] = f'{time.perf_counter() - begin:.0f} s'
        result = dict(
            benchmark='model',
            device=device,
            quick=args.quick,
            environment=env,
            results=[
                dict(
                    case._asdict(),
                    **contestant._asdict(),
                    params=result['params'],
                    error=result['error'],
                    **result['timing'].as_dict(),
                )
                for case, its in results.items()
                for contestant, result in its.items()
            ],
            goals=[dict(asdict(g), verdict=g.verdict) for g in goals],
        )
        measure.write_report(
            args,
            'model',
            device,
            result,
            report_lines(device, results, goals, env),
            plot(device, results),
        )


if __name__ == '__main__':
    main()
