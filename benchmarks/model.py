"""Time of the backbone: inference and a training step, against resolution.

VCMamba as it is, in channels_last, compiled, in its deployment form, and with
the scan done the way the released model does it, against models of timm. All
of them give pooled features, without a classifier.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple
from unittest import mock

import measure
import torch
import torch.nn.functional as F
from measure import Goal
from released_like import RELEASED, four_scans, selective_scans
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vcmamba_mm.analysis.timing import (
    BUFFERS,
    FULL,
    QUICK,
    Call,
    Timing,
    digits,
    table,
    time_side_by_side,
)
from vcmamba_mm.deploy import fuse, optimize
from vcmamba_mm.models import NormGlobalAveragePooling, VCMamba
from vcmamba_mm.models.vcmamba import mixer

try:
    import timm
except ImportError:
    timm = None

INFERENCE, TRAINING = TASKS = 'inference', 'training step'
PLAIN, CHANNELS_LAST = '', 'channels_last'
COMPILED, RELEASED_LIKE = 'channels_last, compiled', 'released-like'
FUSED, OPTIMIZED = 'fused', 'fused, compiled'
CUDA_GRAPHS = 'fused, compiled, CUDA graphs'
SIZES = (224, 384, 512, 768, 1024)
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


class Case(NamedTuple):
    task: str
    size: int
    batch: int

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2

    def __str__(self) -> str:
        return f'{self.task}, {self.size} pixels, batch {self.batch}'


def vcmambas(archs: str, *variants: str) -> list[Contestant]:
    return [
        Contestant(f'VCMamba-{arch}', variant)
        for arch in archs
        for variant in variants
    ]


def timm_models(size: int) -> list[Contestant]:
    if timm is None:
        return []
    return [
        Contestant(name, CHANNELS_LAST)
        for name in TIMM_MODELS
        if ONLY_SIZE.get(name, size) == size
    ]


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
            *timm_models(224),
        ]
        for task, plain in ((INFERENCE, 'SMB'), (TRAINING, 'B'))
    }
    series = {
        Case(INFERENCE, size, series_batch('cpu', size)): [
            *vcmambas('B' if size <= 512 else '', RELEASED_LIKE),
            *vcmambas('SMB', CHANNELS_LAST),
            *timm_models(size),
        ]
        for size in SIZES
    }
    plan = batches | series
    for case in (Case(INFERENCE, 224, 4), Case(INFERENCE, 224, 1)):
        plan[case] += vcmambas('B', FUSED, OPTIMIZED)
    plan[Case(INFERENCE, 224, 1)] += vcmambas('B', PLAIN)
    return plan


def quick_plan() -> Plan:
    ours = vcmambas('S', RELEASED_LIKE, CHANNELS_LAST, PLAIN, FUSED)
    return {
        Case(INFERENCE, 64, 1): [*ours, *timm_models(64)[:1]],
        Case(INFERENCE, 96, 1): ours[:1],
        Case(TRAINING, 64, 2): ours[:2],
    }


def build(name: str, size: int) -> nn.Module:
    """A model that maps images to pooled features."""
    if name.startswith('VCMamba-'):
        backbone = VCMamba(name.removeprefix('VCMamba-'))
        model = nn.Sequential(
            backbone, NormGlobalAveragePooling(backbone.embed_dims[-1])
        )
    else:
        kwargs = dict(img_size=size) if name.startswith('swin') else {}
        model = timm.create_model(name, num_classes=0, **kwargs)
    fit_norms(model, torch.randn(4, 3, *[min(size, 224)] * 2))
    return model


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
def released_like_scan(device: str) -> Iterator[None]:
    """Make VCMamba scan as the released model does."""
    *_, selective_scan = selective_scans(device).values()

    def scan(
        *inputs, param_order: str, num_paths: int, snake: bool, backend: str
    ) -> Tensor:
        assert (param_order, num_paths, snake) == ('raster', 4, True)
        with torch.autocast(device, enabled=False):
            tensors = [
                t.float() if isinstance(t, Tensor) else t for t in inputs
            ]
            y = four_scans(selective_scan, *tensors)
        return y.to(inputs[0].dtype)

    with mock.patch.object(mixer, 'multi_directional_scan', scan):
        yield


def prepare(
    model: nn.Module, variant: str, device: str
) -> Callable[[Tensor], Tensor]:
    """The forward pass of a variant; changes the model."""

    def forward(images: Tensor) -> Tensor:
        features = model(images)
        return features[0] if isinstance(features, tuple) else features

    if variant == RELEASED_LIKE:
        return released_like_scan(device)(forward)
    if variant == PLAIN:
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
def float64_features(model: nn.Module, images: Tensor, device: str) -> Tensor:
    """Features of the same model in float64; a scan is the reference."""
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, mixer.MultiDirectionalMamba):
            module.backend = 'reference'
    return prepare(model, PLAIN, device)(images.double())


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
        expected = float64_features(model, buffers[0][:1], device)
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
    """Compare VCMamba-B with the goals."""
    goals = []
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
        unfolded, fused = vcmambas('B', PLAIN, FUSED)
        its = results.get(case, {})
        if {unfolded, fused} <= set(its):
            times = its[fused]['timing'].times_faster_than(
                its[unfolded]['timing']
            )
            name = f'{case}: {fused} against {unfolded}'
            goals.append(Goal(name, times, must=1.3))
        rival = Contestant('convnext_tiny', CHANNELS_LAST)
        for case, variant, must, aim in (
            (Case(INFERENCE, 224, 1), FUSED, 1, 1.2),
            (Case(INFERENCE, 224, 4), FUSED, 1, 1.2),
            (Case(INFERENCE, 224, 1), PLAIN, 1 / 1.15, None),
            (Case(INFERENCE, 224, 4), PLAIN, 1 / 1.15, None),
            (Case(TRAINING, 224, 4), PLAIN, 1, None),
        ):
            ours = Contestant('VCMamba-B', variant)
            its = results.get(case, {})
            if {ours, rival} <= set(its):
                times = its[ours]['timing'].times_faster_than(
                    its[rival]['timing']
                )
                name = f'{case}: {ours} against {rival}'
                goals.append(Goal(name, times, must, aim))
        return goals
    against_baseline(Case(INFERENCE, 224, 128), 2.5, None)
    against_baseline(Case(TRAINING, 224, 128), 2, 3)
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
        '- released-like: our VCMamba in contiguous NCHW with the scan done '
        f'by four calls of `{scan}`, with transposes, a gather before and '
        'the inverse gather after each (see `scan.py`).',
        '- fused: `vcmamba_mm.deploy.fuse`; fused, compiled: '
        '`vcmamba_mm.deploy.optimize`. The time to compile does not count.',
        '- Each model was checked against itself in float64 (VCMamba with '
        'the reference scan); "error" is relative to the largest feature.',
    ]
    if scan != RELEASED[device]:
        lines.append(
            f'- `{RELEASED[device]}` is not here: goals against it have not '
            'been measured.'
        )
    if timm is None:
        lines.append('- timm is not installed: none of its models is here.')
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
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    effort = QUICK if args.quick else FULL
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
            results[case] = measure_case(case, contestants, device, effort)
        if not results:
            parser.error('nothing to measure at these sizes')
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
