"""The report of the quick start: one HTML page that needs no other file."""

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import mmengine
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from mmengine.config import Config
from PIL import Image

from ..checkpoints import extract_state_dict, read_checkpoint

MAX_MISTAKES, NUM_SCENES = 20, 9
# Placeholder in the curves for the text colour of the page, light or dark.
TEXT_COLOUR = '#010203'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{family} quick start</title>
<style>
:root {{ color-scheme: light dark; --line: #8885; --fill: 59, 130, 246 }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem }}
h1, h2, h3 {{ line-height: 1.2; margin: 2.2em 0 .6em }}
h1 {{ margin-top: 0 }}
h2 {{ border-top: 1px solid var(--line); padding-top: 1em }}
h3 {{ margin-top: 1.6em }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25em .9em .25em 0; text-align: left;
  vertical-align: top }}
td {{ overflow-wrap: anywhere }}
@media (max-width: 40rem) {{
  th, td {{ font-size: .8rem; padding-right: .5em }} }}
@media (min-width: 40rem) {{ th {{ white-space: nowrap }} }}
th {{ font-weight: 600 }}
.cards, .curves, .pictures {{ display: grid; gap: 1rem }}
.cards, .curves {{
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)) }}
.cards div {{ border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem }}
.cards small, .cards strong {{ display: block }}
.cards strong {{ font-size: 2.4rem; line-height: 1.3 }}
.curves svg {{ width: 100%; height: auto }}
.scroll {{ overflow-x: auto }}
.confusion th, .confusion td {{ padding: 0; text-align: center;
  min-width: min(2.3rem, 7.4vw); vertical-align: middle }}
.confusion span {{ display: block; height: 2.1rem; line-height: 2.1rem;
  border: 1px solid var(--line); margin: 1px;
  background: rgba(var(--fill), calc(.75 * pow(var(--share), .5))) }}
.pictures {{ gap: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(max(4.6rem, 9%), 1fr)) }}
.pictures:has(img + img) {{ gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)) }}
figure {{ margin: 0; font-size: .9rem }}
figure img {{ width: 100%; display: inline-block; border-radius: .25rem }}
figure:has(img + img) img {{ width: 33.3%; border: 1px solid transparent;
  box-sizing: border-box }}
.right b {{ color: #16a34a }}
.wrong b {{ color: #ef4444 }}
.bars table {{ width: 100%; max-width: 40rem }}
.bars th, .bars td {{ vertical-align: middle }}
.bars th, .bars td:last-child {{ white-space: nowrap; width: 1% }}
.bars i {{ display: inline-block; width: .8em; height: .8em;
  margin-right: .5em; border: 1px solid var(--line) }}
.bars span {{ display: block; height: .9em; border-radius: .2em;
  width: calc(var(--value) * 1%); background: rgb(var(--fill)) }}
</style>
</head>
<body>
<h1>{family} quick start</h1>
<p>A small {family} classifier, trained from scratch on &ldquo;digits on
photos&rdquo;, and a segmenter, fine-tuned from that classifier&rsquo;s
checkpoint. Held-out images share neither a digit nor a part of a photograph
with the training images.</p>
<div class="cards">{cards}</div>
<h2>What was run</h2>
<div class="scroll">{facts}</div>
{sections}
</body>
</html>
"""


class Run(NamedTuple):
    """A training run, as its work directory tells it."""

    cfg: Config
    checkpoint: Path
    num_parameters: int
    seconds: float
    train: list[dict]  # logged scalars, of training ...
    val: list[dict]  # ... and validation, 'step' replaced by the iteration


def read_run(run_dir: Path) -> Run:
    """Read the latest training run in a work directory of MMEngine.

    Raises:
        FileNotFoundError: If there is none, or it saved no checkpoint.
    """
    for log in sorted(run_dir.glob('*/vis_data/scalars.json'), reverse=True):
        scalars = [json.loads(line) for line in log.read_text().splitlines()]
        train = [line for line in scalars if 'loss' in line]
        if train:
            break
    else:
        raise FileNotFoundError(f'no log of a training run in {run_dir}')
    val, step = [], 0
    for line in scalars:
        step = line['step'] if 'loss' in line else step
        if 'loss' not in line:
            val.append({**line, 'step': step})

    last_checkpoint = run_dir / 'last_checkpoint'
    if not last_checkpoint.is_file():
        raise FileNotFoundError(f'no checkpoint in {run_dir}')
    checkpoint = run_dir / Path(last_checkpoint.read_text()).name
    weights = extract_state_dict(read_checkpoint(checkpoint), checkpoint)
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    num_parameters = sum(
        w.numel() for name, w in weights.items() if not name.endswith(buffers)
    )

    text_log = log.parents[1] / f'{log.parents[1].name}.log'
    times = [
        datetime.strptime(time, '%Y/%m/%d %H:%M:%S')
        for time in re.findall(
            r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ',
            text_log.read_text(),
            re.MULTILINE,
        )
    ]
    cfg = Config.fromfile(
        log.with_name('config.py'), import_custom_modules=False
    )
    return Run(
        cfg,
        checkpoint,
        num_parameters,
        (times[-1] - times[0]).total_seconds(),
        train,
        val,
    )


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int
) -> np.ndarray:
    """Count how often which class (row) was taken for which (column)."""
    pairs = num_classes * truth.astype(int) + prediction
    return np.bincount(pairs.ravel(), minlength=num_classes**2).reshape(
        num_classes, num_classes
    )


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union, in percent; NaN where a class is nowhere."""
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return 100 * np.divide(
        hits, union, out=np.full(len(hits), np.nan), where=union > 0
    )


# ---------------------------------------------------------------- HTML pieces


def _image(picture: np.ndarray, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'PNG')
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _table(rows: Iterable[Sequence], header: Sequence = ()) -> str:
    head = ''.join(f'<th>{cell}</th>' for cell in header)
    body = ''.join(
        f'<tr><th>{first}</th>'
        + ''.join(f'<td>{cell}</td>' for cell in rest)
        + '</tr>'
        for first, *rest in rows
    )
    return f'<table><tr>{head}</tr>{body}</table>'


def _curve(
    title: str, lines: list[dict], key: str, chance: float | None = None
) -> str:
    """Plot a logged scalar against the iterations, as inline SVG."""
    colours = dict.fromkeys(
        (
            'text.color',
            'axes.edgecolor',
            'xtick.color',
            'ytick.color',
            'axes.labelcolor',
        ),
        TEXT_COLOUR,
    )
    with rc_context({**colours, 'svg.hashsalt': title, 'font.size': 9}):
        figure = Figure(figsize=(3.6, 2.5), layout='constrained')
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.spines[['top', 'right']].set_visible(False)
        axes.set(title=title, xlabel='iteration')
        lines = [line for line in lines if key in line]
        axes.plot(
            [line['step'] for line in lines],
            [line[key] for line in lines],
            marker='o' if len(lines) < 15 else None,
            color='#3b82f6',
        )
        if chance is not None:
            axes.axhline(chance, linestyle='--', color='#f97316')
            axes.annotate(
                f'chance {chance:.1f} %',
                (1, chance),
                (0, 3),
                xycoords=('axes fraction', 'data'),
                textcoords='offset points',
                ha='right',
                color='#f97316',
            )
            axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format='svg', transparent=True, metadata={'Date': None}
        )
    svg = buffer.getvalue().replace(TEXT_COLOUR, 'currentColor')
    return svg[svg.index('<svg') :]


def _curves(run: Run, metric: str, label: str, chance: float) -> str:
    panels = [
        _curve('training loss', run.train, 'loss'),
        _curve(f'{label} on held-out data, %', run.val, metric, chance),
        _curve('learning rate', run.train, 'lr'),
    ]
    return f'<div class="curves">{"".join(panels)}</div>'


def _figures(figures: Iterable[tuple[str, str, str]]) -> str:
    """Lay out (images, caption, CSS class) in rows."""
    return (
        '<div class="pictures">'
        + ''.join(
            f'<figure class="{kind}">{images}'
            f'<figcaption>{caption}</figcaption></figure>'
            for images, caption, kind in figures
        )
        + '</div>'
    )


# -------------------------------------------------------------------- the two


class Result(NamedTuple):
    """What the page says about one task."""

    score: float  # percent
    chance: float
    num_pictures: int
    body: str


def _classification(run: Run, run_dir: Path) -> Result:
    file = run_dir / 'predictions.pkl'
    if not file.is_file():
        raise FileNotFoundError(f'no predictions of the classifier: {file}')
    samples = mmengine.load(file)
    truth = np.array([int(s['gt_label']) for s in samples])
    prediction = np.array([int(s['pred_label']) for s in samples])
    confidence = np.array([float(s['pred_score'].max()) for s in samples])
    num_classes = len(samples[0]['pred_score'])
    score, chance = 100 * (truth == prediction).mean(), 100 / num_classes

    confusion = confusion_matrix(truth, prediction, num_classes)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    rows = [
        [label, *row]
        for label, row in enumerate(
            [
                [
                    f'<span style="--share:{s:.3f}">{n or ""}</span>'
                    for n, s in zip(*row)
                ]
                for row in zip(confusion, share)
            ]
        )
    ]

    def figure(i: int) -> tuple[str, str, str]:
        right = truth[i] == prediction[i]
        text = f'{prediction[i]}' + ('' if right else f', truly {truth[i]}')
        picture = np.asarray(Image.open(samples[i]['img_path']).convert('RGB'))
        return (
            _image(picture, f'predicted {text}'),
            f'<b>{text}</b> <small>{100 * confidence[i]:.0f} %</small>',
            'right' if right else 'wrong',
        )

    hits = [
        i
        for label in range(num_classes)
        for i in np.flatnonzero((truth == prediction) & (truth == label))[:2]
    ]
    mistakes = np.flatnonzero(truth != prediction)
    worst = mistakes[np.argsort(-confidence[mistakes], kind='stable')]
    body = f"""
<h3>Training</h3>
{_curves(run, 'accuracy/top1', 'top-1', chance)}
<h3>Confusion matrix</h3>
<p>Rows: the true digit, columns: the predicted one. Number of held-out
images.</p>
<div class="scroll confusion">{_table(rows, ['', *range(num_classes)])}</div>
<h3>Predictions on held-out images</h3>
<p>Right ones, the first two of every digit, with the confidence:</p>
{_figures(map(figure, hits))}
<p>{len(mistakes)} of {len(truth)} are wrong; the most confident mistakes:</p>
{_figures(map(figure, worst[:MAX_MISTAKES]))}"""
    return Result(score, chance, len(truth), body)


def _segmentation(run: Run, run_dir: Path) -> Result:
    dataset = run.cfg.val_dataloader.dataset
    root = Path(dataset.data_root)
    classes, palette = dataset.metainfo.classes, dataset.metainfo.palette
    palette = np.array(palette, np.uint8)
    files = sorted((run_dir / 'predictions').glob('*.png'))
    if not files:
        raise FileNotFoundError(
            f'no predictions of the segmenter: {run_dir / "predictions"}/*.png'
        )
    pictures = [
        np.asarray(Image.open(root / dataset.data_prefix.img_path / file.name))
        for file in files
    ]
    truths = [
        np.asarray(
            Image.open(root / dataset.data_prefix.seg_map_path / file.name)
        )
        for file in files
    ]
    predictions = [np.asarray(Image.open(file)) for file in files]
    counts = sum(
        confusion_matrix(truth, prediction, len(classes))
        for truth, prediction in zip(truths, predictions)
    )
    iou = iou_per_class(counts)
    score = np.nanmean(iou)
    always_background = np.zeros_like(counts)
    always_background[:, 0] = counts.sum(1)
    chance = np.nanmean(iou_per_class(always_background))

    def painted(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
        paint = (0.25 * picture + 0.75 * palette[labels]).astype(np.uint8)
        return np.where(labels[..., None] > 0, paint, picture // 2)

    def figure(i: int) -> tuple[str, str, str]:
        agreement = 100 * (truths[i] == predictions[i]).mean()
        images = (
            _image(pictures[i], 'image')
            + _image(painted(pictures[i], truths[i]), 'truth')
            + _image(painted(pictures[i], predictions[i]), 'prediction')
        )
        return images, f'<small>{agreement:.1f} % of the pixels</small>', ''

    worst = np.argsort(
        [(t == p).mean() for t, p in zip(truths, predictions)], kind='stable'
    )
    bars = [
        [
            f'<i style="background:rgb{tuple(map(int, colour))}"></i>{name}',
            f'<span style="--value:{np.nan_to_num(value):.1f}"></span>',
            f'{value:.1f} %',
        ]
        for name, value, colour in zip(classes, iou, palette)
    ]
    body = f"""
<h3>Training</h3>
{_curves(run, 'mIoU', 'mIoU', chance)}
<h3>Intersection over union by class</h3>
<div class="bars">{_table(bars)}</div>
<h3>Predictions on held-out images</h3>
<p>Image, truth, prediction; the share of pixels that agree. The first
{min(NUM_SCENES, len(files))}:</p>
{_figures(map(figure, range(len(files))[:NUM_SCENES]))}
<p>The {min(NUM_SCENES, len(files))} in which most pixels are wrong:</p>
{_figures(map(figure, worst[:NUM_SCENES]))}"""
    return Result(score, chance, len(files), body)


def _facts(run: Run, result: Result) -> dict[str, object]:
    """What was run, for one column of the page's table."""
    model, loader = run.cfg.model, run.cfg.train_dataloader
    arch = model.backbone.arch
    if isinstance(arch, dict):
        arch = ', '.join(f'{name} {value}' for name, value in arch.items())
    head = model.get('head') or model.decode_head
    folder = loader.dataset.data_prefix
    folder = folder if isinstance(folder, str) else folder.img_path
    pictures = Path(loader.dataset.data_root, folder).rglob('*.png')
    minutes, seconds = divmod(round(run.seconds), 60)
    return {
        'Backbone': f'{model.backbone.type}: {arch}',
        'Neck, head': f'{model.neck.type}, {head.type}',
        'Parameters': f'{run.num_parameters:,}',
        'Training images': len(list(pictures)),
        'Held-out images': result.num_pictures,
        'Batch size': loader.batch_size,
        'Iterations': run.train[-1]['step'],
        'Training time': f'{minutes} min {seconds:02} s',
        'Checkpoint': html.escape(run.checkpoint.as_posix()),
    }


def write_report(
    work_dir: str | os.PathLike, out: str | os.PathLike | None = None
) -> Path:
    """Write the page about both tasks.

    Args:
        work_dir: With ``classifier/`` and ``segmenter/``, the work directories
            of the two training runs, and in them what ``tools/test.py --out``
            wrote: ``predictions.pkl`` and ``predictions/``.
        out: The page, by default ``report.html`` in ``work_dir``.

    Returns:
        Path: The page.

    Raises:
        FileNotFoundError: If a log, a checkpoint or predictions are missing.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f'no such folder: {work_dir}')
    tasks = []
    for title, folder, metric, guess, evaluate in (
        ('Classification', 'classifier', 'top-1', 'guessing', _classification),
        (
            'Segmentation',
            'segmenter',
            'mIoU',
            'always background',
            _segmentation,
        ),
    ):
        run = read_run(work_dir / folder)
        result = evaluate(run, work_dir / folder)
        tasks.append((title, metric, guess, run, result))

    cards = ''.join(
        f'<div><small>{title}: {metric} on {result.num_pictures} held-out '
        f'images</small><strong>{result.score:.1f} %</strong>'
        f'<small>chance level ({guess}): {result.chance:.1f} %</small></div>'
        for title, metric, guess, _, result in tasks
    )
    columns = [_facts(run, result) for *_, run, result in tasks]
    page = PAGE.format(
        family=tasks[0][3].cfg.model.backbone.type,
        cards=cards,
        facts=_table(
            [
                [name, *(column[name] for column in columns)]
                for name in columns[0]
            ],
            ['', *(title for title, *_ in tasks)],
        ),
        sections=''.join(
            f'<h2>{title}</h2>{result.body}' for title, *_, result in tasks
        ),
    )
    out = Path(out or work_dir / 'report.html')
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding='utf-8')
    return out
