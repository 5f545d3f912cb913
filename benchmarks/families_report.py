"""Tables and curves of what ``families.py`` has trained.

A run is a dict with ``data``, ``model``, ``seed``, ``settings``, and what came
out: ``loss`` of each epoch, ``scores`` as pairs of epoch and score, and so on.
"""

import statistics

import small_training as small
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vcmamba_mm.analysis.timing import table

TOP1, MIOU = 'top-1', 'mIoU'


def group(runs: list[dict], key: str) -> dict[str, list[dict]]:
    """Runs by what they have under a key, in their order."""
    groups = {}
    for run in runs:
        groups.setdefault(run[key], []).append(run)
    return groups


def final(run: dict) -> float:
    """The score after the last epoch."""
    return run['scores'][-1][1]


def curves(run: dict) -> dict[str, tuple[list[int], list[float]]]:
    """Epochs and values of loss and score."""
    epochs = range(1, len(run['loss']) + 1)
    x, y = zip(*run['scores'])
    return dict(loss=(list(epochs), run['loss']), score=(list(x), list(y)))


def with_interval(values: list[float], sign: str = '') -> str:
    """The mean and half of its interval, for a table."""
    if len(values) < 2:
        return ''
    mean, half = small.interval(values)
    return f'{mean:{sign}.1f} \u00b1 {half:.1f}'.replace('-', '\u2212')


def results_table(runs: list[dict]) -> list[str]:
    """A row for each model; differences to the first, paired by seed."""
    seeds = sorted({run['seed'] for run in runs})
    models = {
        name: {run['seed']: final(run) for run in its}
        for name, its in group(runs, 'model').items()
    }
    first, *_ = models
    header = ['model', 'parameters', 'MACs, M']
    header += [*(f'seed {seed}' for seed in seeds), 'mean', f'\u2212 {first}']
    rows = []
    for name, scores in models.items():
        run = next(run for run in runs if run['model'] == name)
        row = [name, f'{run["params"]:,}', f'{run["macs"] / 1e6:.1f}']
        for seed in seeds:
            row.append(f'{scores[seed]:.1f}' if seed in scores else '')
        row.append(with_interval(list(scores.values())))
        differences = [
            scores[seed] - models[first][seed]
            for seed in seeds
            if name != first and {seed} <= scores.keys() & models[first]
        ]
        rows.append([*row, with_interval(differences, '+')])
    return table(header, rows)


def section(data: str, runs: list[dict]) -> list[str]:
    """A data set's part of the report."""
    run = runs[0]
    its, (train, test) = run['settings'], run['pictures']
    text = (
        f'{run["score_name"]}, percent. {train} images to learn from, '
        f'{test} to test; inputs of {its["size"]} pixels, '
        f'{its["recipe"]["augmentation"]}{"" if its["flips"] else " (none)"}; '
        f'{its["epochs"]} epochs, {its["recipe"]["batch_size"]} images a '
        'step.'
    )
    if run['score_name'] == TOP1:
        error = small.sampling_error(statistics.mean(map(final, runs)), test)
        text += f' One run is uncertain by about {error:.1f} points besides.'
    return ['', f'## {data}', '', *results_table(runs), '', text]


def lines(runs: list[dict], models: dict[str, str]) -> list[str]:
    """The report.

    Args:
        runs: Those that are shown.
        models: Their arguments, by name.
    """
    report = [
        '# Small backbones of the families',
        '',
        'Written by `benchmarks/families.py`.',
    ]
    for data, its in group(runs, 'data').items():
        report += section(data, its)
    recipe = {
        key: value
        for key, value in small.RECIPE.items()
        if key not in ('batch_size', 'augmentation')
    }
    versions = {
        key: ', '.join(dict.fromkeys(run['versions'][key] for run in runs))
        for key in runs[0]['versions']
    }
    minutes = sum(run['seconds'] for run in runs) / 60
    shown = {
        **models,
        **recipe,
        'training, all runs': f'{minutes:.0f} min',
        **versions,
        'dates': ', '.join(sorted({run['date'] for run in runs})),
    }
    return [
        *report,
        '',
        'Means over the seeds \u00b1 half of their 95 % interval '
        "(Student's t); differences are paired by seed, and clear where the "
        'interval excludes 0. The models are small and briefly trained, with '
        'one recipe that was tuned for none of them: this says nothing about '
        'ImageNet. MACs are of one input, scans included.',
        '',
        '![Loss and score by epoch](families.png)',
        '',
        'Lines are means over the seeds, areas reach from the lowest to the '
        'highest.',
        '',
        *table(['', ''], [[key, str(value)] for key, value in shown.items()]),
        '',
    ]


def plot(runs: list[dict]) -> Figure:
    """Loss and score by epoch."""
    colors = {name: f'C{i}' for i, name in enumerate(group(runs, 'model'))}
    columns = group(runs, 'data')
    figure = Figure(figsize=(1 + 4 * len(columns), 6), layout='constrained')
    axes = figure.subplots(2, len(columns), sharex='col', squeeze=False)
    for (upper, lower), (data, its) in zip(axes.T, columns.items()):
        for name, own in group(its, 'model').items():
            for axis, kind in ((upper, 'loss'), (lower, 'score')):
                x = curves(own[0])[kind][0]
                values = [curves(run)[kind][1] for run in own]
                mean, low, high = (
                    list(map(choose, zip(*values)))
                    for choose in (statistics.mean, min, max)
                )
                axis.plot(x, mean, color=colors[name])
                axis.fill_between(
                    x, low, high, color=colors[name], alpha=0.2, linewidth=0
                )
        upper.set(title=data, ylabel='training loss')
        lower.set(xlim=(0, its[0]['settings']['epochs'] + 1))
        lower.set(xlabel='epoch', ylabel=f'{its[0]["score_name"]}, %')
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    figure.legend(
        [Line2D([], [], color=color) for color in colors.values()],
        colors,
        loc='outside lower center',
        ncols=len(colors),
        frameon=False,
    )
    return figure
