"""The report of ``input_pipeline.py``."""

import statistics
from typing import NamedTuple

import measure
from measure import Goal

from vcmamba_mm.analysis.timing import Timing, digits, table


def lines(
    timings: dict[NamedTuple, Timing],
    stages: dict[NamedTuple, dict[str, float]],
    normalization: float,
    augmentation: float,
    loaders: dict[tuple[NamedTuple, int], list[float]],
    differences: dict[str, float],
    goals: list[Goal],
    pictures: int,
) -> list[str]:
    """The report in Markdown.

    Args:
        timings: Of each contestant for a picture; of the baseline first.
        stages: Of a contestant, each transform's milliseconds for a picture.
        normalization: Milliseconds for a picture.
        augmentation: The same, of that which the device does.
        loaders: Pictures per second of a contestant and a number of workers.
        differences: Of a contestant's pixels to the baseline's.
        goals: What was to be reached.
        pictures: How many.
    """
    baseline, *_ = timings.values()
    workers = sorted({number for _, number in loaders})
    report = [
        '# Input pipeline',
        '',
        f'Written by `benchmarks/input_pipeline.py`: {pictures} JPEGs of '
        'ImageNet, 224 x 224 crops, RandAugment, random erasing; one core.',
        '',
        '## The whole pipeline in one process',
        '',
        *table(
            [
                'pipeline',
                'ms per picture',
                'pictures per second',
                'times faster',
                'mean difference of pixels',
            ],
            [
                [
                    str(contestant),
                    str(timing),
                    digits(1000 / timing.median),
                    measure.ratio(timing, baseline),
                    f'{differences[str(contestant)]:.2f}',
                ]
                for contestant, timing in timings.items()
            ],
        ),
        '',
        *measure.notes({str(c): t for c, t in timings.items()}),
        "- The difference of pixels is that to mmpretrain's pictures of the "
        'same draws, before erasing, of 255. Those *augmented on the device* '
        'are compared before RandAugment.',
        '- *Augmented on the device*: the time is that of the loader, without '
        'RandAugment and erasing, which the process that trains does then.',
        *measure.goals_section(goals),
        '',
        '## Stages, ms per picture',
    ]
    for contestant, its in stages.items():
        report += [
            '',
            *table(
                [str(contestant), 'ms'],
                [[name, f'{ms:.3f}'] for name, ms in its.items()],
            ),
        ]
    report += [
        '',
        'Normalization (`ClsDataPreprocessor`) is the same for all. The '
        'process that trains does it, on the GPU if there is one; on one core '
        f'of this CPU it takes {normalization:.2f} ms per picture.',
        '',
        'Where the device augments, that process does RandAugment and erasing '
        'too (`AugmentingDataPreprocessor`): on one core of this CPU '
        f'{augmentation:.2f} ms per picture in batches of 64. On a GPU it has '
        'not been measured.',
        '',
        '## Loader, pictures per second against workers',
        '',
        *table(
            ['pipeline', *map(str, workers)],
            [
                [
                    str(contestant),
                    *(
                        digits(statistics.median(loaders[contestant, number]))
                        for number in workers
                    ),
                ]
                for contestant in timings
                if (contestant, workers[0]) in loaders
            ],
        ),
    ]
    return report


def plot(loaders: dict[tuple[NamedTuple, int], list[float]]) -> measure.Figure:
    """Pictures per second against workers."""
    panel = {}
    for (contestant, workers), rates in sorted(
        loaders.items(), key=lambda item: item[0][1]
    ):
        x, y = panel.setdefault((str(contestant), ''), ([], []))
        x.append(workers)
        y.append(statistics.median(rates))
    return measure.line_plot(
        {'loader': panel}, 'workers', 'pictures per second'
    )
