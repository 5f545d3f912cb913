"""Draw curves from the logs of one or more runs.

A panel for each key, a line for each run, a colour for each label. What a
resumed run did again is drawn once, as it was the last time.
"""

import argparse
import io
import json
from pathlib import Path

from matplotlib.figure import Figure

from vcmamba_mm.files import write_file
from vcmamba_mm.training.command_line import one_line_errors


def read_lines(log: Path) -> list[dict]:
    """Read what MMEngine's ``LocalVisBackend`` wrote.

    Raises:
        ValueError: If a line is not JSON. The last one may have been cut off.
    """
    lines = []
    texts = log.read_text().splitlines()
    for i, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if i < len(texts):
                raise ValueError(f'{log}, line {i}, is not JSON') from error
    return lines


def count(logs: list[list[dict]]) -> None:
    """Give every line of a run's logs ``iter``, the iterations done.

    And ``epoch``, the epochs done with their fraction, if the run is counted
    in epochs.
    """
    lines = [line for log in logs for line in log]
    # Lines of a validation have but a step, which counts what the run counts.
    epoch_iters = max(
        (
            -(-line['iter'] // line['epoch'])
            for line in lines
            if 'epoch' in line
        ),
        default=None,
    )
    for line in lines:
        if epoch_iters is None:
            line.setdefault('iter', line['step'])
        else:
            line.setdefault('iter', line['step'] * epoch_iters)
            line['epoch'] = line['iter'] / epoch_iters


def read_run(path: Path) -> list[dict]:
    """Read the logs of a work directory, or one ``scalars.json``.

    Returns:
        list[dict]: The scalars of each line, see ``count`` for what is added.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If one cannot be read.
    """
    logs = (
        [path]
        if path.is_file()
        else sorted(path.glob('*/vis_data/scalars.json'))
    )
    if not logs:
        raise FileNotFoundError(
            f'no log in {path}: name the work directory of a training or a '
            'scalars.json'
        )
    runs = [read_lines(log) for log in logs]
    count(runs)
    lines = []
    for new in filter(None, runs):
        start = min(line['iter'] for line in new)
        # A run resumed at the end of an epoch may begin with a validation.
        begins = [is_training(n) for n in new if n['iter'] == start]
        lines = [
            line
            for line in lines
            if line['iter'] < start
            or (line['iter'] == start and is_training(line) not in begins)
        ] + new
    return lines


def is_training(line: dict) -> bool:
    return 'lr' in line


def curve(
    lines: list[dict], key: str, axis: str, path: Path
) -> tuple[list[float], list[float]]:
    """Take the points of one key.

    Raises:
        ValueError: If there are none.
    """
    having = [line for line in lines if key in line]
    if not having:
        keys = sorted({k for line in lines for k in line} - {'step'})
        raise ValueError(f'{path} has no {key!r}; it has {", ".join(keys)}')
    if axis not in having[0]:
        raise ValueError(
            f'{path} is counted in iterations, not in epochs: use --x iter'
        )
    # Some keys, time and data_time, are those of validations, too.
    training = [line for line in having if is_training(line)]
    points = [(line[axis], line[key]) for line in training or having]
    return tuple(zip(*points))


def plot(
    runs: list[tuple[str, Path]], keys: list[str], axis: str, out: Path
) -> None:
    """Draw all curves and save the figure.

    Args:
        runs: Label and place of each run; those of one label share a colour.
        keys: What to draw, a panel for each.
        axis: 'iter' or 'epoch'.
        out: The figure; its suffix says what kind.
    """
    lines = [read_run(path) for _, path in runs]
    labels = list(dict.fromkeys(label for label, _ in runs))
    figure = Figure(figsize=(5 * len(keys), 3.6), layout='constrained')
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    for panel, key in zip(panels, keys):
        for (label, path), run in zip(runs, lines):
            x, y = curve(run, key, axis, path)
            panel.plot(
                x,
                y,
                f'C{labels.index(label)}',
                linewidth=1.5,
                marker='.' if len(x) < 30 else None,
                label=label,
            )
        panel.set_xlabel('iterations' if axis == 'iter' else 'epochs')
        panel.set_title(key)
        panel.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    unique = dict(zip(names, handles))
    panels[0].legend(unique.values(), unique)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=out.suffix[1:] or None)
    write_file(content.getvalue(), out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'runs',
        nargs='+',
        type=Path,
        metavar='RUN',
        help='a work directory or a scalars.json',
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        default=['loss'],
        metavar='KEY',
        help='what to draw, e.g. loss accuracy/top1 mIoU grad_norm lr',
    )
    parser.add_argument(
        '--x', choices=['iter', 'epoch'], default='iter', help='against what'
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help='a name for each run, by default that of its folder; runs of the '
        'same name, as of several seeds, share a colour',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('curves.png'), help='figure to write'
    )
    args = parser.parse_args()
    args.labels = args.labels or [
        path.name if path.is_dir() else str(path) for path in args.runs
    ]
    if len(args.labels) != len(args.runs):
        parser.error(f'{len(args.runs)} runs, {len(args.labels)} labels')
    return args


def main() -> None:
    args = parse_args()
    with one_line_errors(ValueError, OSError):
        runs = list(zip(args.labels, args.runs))
        plot(runs, args.keys, args.x, args.out)
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
