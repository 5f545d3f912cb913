"""Small classifiers, trained side by side on small pictures."""

import argparse
import io
import json
import math
import os
import platform
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vcmamba_mm import __version__
from vcmamba_mm.analysis.complexity import flop_counter
from vcmamba_mm.models import NormGlobalAveragePooling

RECIPE = dict(
    batch_size=50,
    optimizer='AdamW',
    lr=2e-3,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    no_weight_decay='one-dimensional parameters',
    schedule='one epoch linear warm-up, cosine to 0',
    label_smoothing=0.1,
    augmentation='reflection padding 4, random crop, horizontal flip',
    upsampling='bilinear',
    drop_path_rate=0.0,
    tested='after the last epoch, no selection',
)
SCORES = 10  # at most twice as many while it learns
VERDICTS = dict(
    wins='wins, clearly',
    loses='loses, clearly',
    undecided='neither wins nor loses clearly',
)
# Student's t, two-sided 95 %, by the number of seeds
T_95 = dict(
    zip(
        range(2, 11),
        (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262),
    )
)


class Classifier(nn.Module):
    """Backbone, norm, mean over the tokens, linear classifier."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        norm_cfg: dict | None = None,
    ):
        super().__init__()
        dims = backbone.embed_dims[-1]
        self.backbone = backbone
        self.neck = NormGlobalAveragePooling(dims, norm_cfg=norm_cfg)
        self.fc = nn.Linear(dims, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.neck(self.backbone(x))[0])


def read_pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file of a folder or a tar, sorted."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob('*') if p.is_file()):
            yield file.as_posix(), file.read_bytes()
        return
    with tarfile.open(path) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if not member.isdir():
                yield member.name, tar.extractfile(member).read()


def load_data(
    path: Path, size: int, test: str = 'test'
) -> tuple[dict[str, tuple[Tensor, Tensor]], list]:
    """Read ``.../{train,test}/<class>/<picture>``, square pictures.

    Args:
        path: Folder or tar.
        size: Of the pictures, in pixels.
        test: Name of the folder of the tests.

    Returns:
        tuple: For each split the pictures, uint8, (n, 3, height, width), and
        the labels, int64, (n, ); and the names of the classes.

    Raises:
        ValueError: If a file cannot be used; none is left out.
    """
    pictures = dict(train=[], test=[])
    names = dict(train=[], test=[])
    for name, content in read_pictures(path):
        split, label = (['', '', *name.split('/')])[-3:-1]
        split = {test: 'test'}.get(split, split)
        if split not in pictures:
            raise ValueError(
                f'{name} is not in train/<class> or {test}/<class>'
            )
        try:
            image = np.array(Image.open(io.BytesIO(content)).convert('RGB'))
        except OSError as error:
            raise ValueError(f'{name} cannot be read as a picture') from error
        if image.shape != (size, size, 3):
            raise ValueError(f'{name} has not {size} x {size} pixels')
        pictures[split].append(image)
        names[split].append(label)
    classes = sorted(set(names['train']))
    if not classes or classes != sorted(set(names['test'])):
        raise ValueError(
            f'{path}: train and test need the same classes, got '
            f'{classes} and {sorted(set(names["test"]))}'
        )
    data = {}
    for split, images in pictures.items():
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        y = torch.tensor([classes.index(name) for name in names[split]])
        data[split] = (x, y)
    return data, classes


def augment(
    x: Tensor, generator: torch.Generator, flips: bool = True
) -> Tensor:
    """Pad by 4, cut out at random, and, if so, flip half of them."""
    size = x.shape[2]
    top, left = torch.randint(9, (2, len(x)), generator=generator)
    flip = (torch.rand(len(x), generator=generator) < 0.5) & flips
    x = F.pad(x, (4, 4, 4, 4), mode='reflect')
    x = x.unfold(2, size, 1).unfold(3, size, 1)
    x = x[torch.arange(len(x)), :, top, left]
    return torch.where(flip[:, None, None, None], x.flip(3), x)


class Classification:
    """Pictures with labels, and how well a model knows them.

    Args:
        data: From ``load_data``.
        size: Of the inputs, in pixels.
        flips: Whether pictures to learn from are flipped.
    """

    score_name = 'top-1'
    recipe = RECIPE

    def __init__(self, data: dict, size: int, flips: bool = True):
        (self.x, self.y), self.test = data['train'], data['test']
        self.size, self.flips = size, flips
        self.num_classes = int(self.y.max()) + 1
        self.mean = self.x.float().mean((0, 2, 3), keepdim=True)
        self.std = self.x.float().std((0, 2, 3), keepdim=True)

    def prepare(self, pictures: Tensor) -> Tensor:
        """The inputs of a model."""
        pictures = (pictures.float() - self.mean) / self.std
        return F.interpolate(pictures, self.size, mode='bilinear')

    def batch(
        self, chosen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the pictures with these numbers."""
        x = augment(self.x[chosen].float(), generator, self.flips)
        return self.prepare(x), self.y[chosen]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Top-1 accuracy on the pictures to test with, in percent."""
        model.eval()
        hits = sum(
            (model(self.prepare(x)).argmax(1) == y).sum().item()
            for x, y in zip(*(part.split(200) for part in self.test))
        )
        return 100 * hits / len(self.test[1])


def complexity(
    model: nn.Module, size: int | tuple[int, int]
) -> tuple[int, int]:
    """Parameters that the output depends on, and MACs of one picture."""
    height, width = (size, size) if isinstance(size, int) else size
    model.eval()
    with flop_counter() as counter:
        output = model(torch.zeros(1, 3, height, width))
    output.sum().backward()
    params = sum(p.numel() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    # The counter counts two operations for each multiply-accumulate.
    return params, counter.get_total_flops() // 2


def optimizer_and_schedule(
    model: nn.Module, epochs: int, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW and its learning rate's course; ``steps`` are an epoch's."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed), dict(params=others, weight_decay=0.0)],
        lr=RECIPE['lr'],
        betas=RECIPE['betas'],
        weight_decay=RECIPE['weight_decay'],
    )

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / (epochs * steps))
        return min(1.0, (step + 1) / steps) * cosine

    return optimizer, LambdaLR(optimizer, factor)


def train(
    task: Classification,
    models: dict[str, Callable[[], nn.Module]],
    epochs: int,
    seed: int,
) -> dict[str, dict]:
    """Train each model with one seed, all of them step by step side by side.

    A model sees the same batches whether it is alone or not.

    Args:
        task: What they learn.
        models: What makes each of them.
        epochs: How many.
        seed: Of weights, order and augmentation.

    Returns:
        dict: For each of ``models`` the mean training loss of every epoch,
        pairs of an epoch and the score after it, of which the last is that
        of the last epoch, and the seconds of every step.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(task.x) / task.recipe['batch_size'])
    every = max(1, epochs // SCORES)
    runs = {}
    for name, build in models.items():
        torch.manual_seed(seed)
        model = build()
        runs[name] = (
            model,
            *optimizer_and_schedule(model, epochs, steps),
            dict(loss=[], scores=[], seconds=[]),
        )
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(task.x), generator=generator)
        losses = {name: [] for name in runs}
        for model, *_ in runs.values():
            model.train()
        for chosen in order.split(task.recipe['batch_size']):
            inputs, targets = task.batch(chosen, generator)
            for name, (model, optimizer, schedule, log) in runs.items():
                start = time.perf_counter()
                loss = F.cross_entropy(
                    model(inputs),
                    targets,
                    label_smoothing=RECIPE['label_smoothing'],
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses[name].append(loss.item())
                log['seconds'].append(time.perf_counter() - start)
        for name, (model, *_, log) in runs.items():
            log['loss'].append(statistics.mean(losses[name]))
            line = f'seed {seed} epoch {epoch}/{epochs}  {name} '
            line += f'loss {log["loss"][-1]:.3f}'
            if epoch % every == 0 or epoch == epochs:
                log['scores'].append((epoch, task.score(model)))
                line += f'  {task.score_name} {log["scores"][-1][1]:.1f}'
            print(line, flush=True)
    return {name: log for name, (*_, log) in runs.items()}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of two or more values, and the half of its 95 % interval."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), T_95[len(values)] * spread


def compare(a: list[float], b: list[float]) -> dict:
    """Paired differences a - b, their mean, and the half of its 95 % interval.

    Clear is what excludes 0.
    """
    values = [round(p - q, 4) for p, q in zip(a, b)]
    mean, half = interval(values)
    verdict = (
        'undecided' if abs(mean) <= half else 'wins' if mean > 0 else 'loses'
    )
    return dict(
        values=values, mean=mean, half_interval_95=half, verdict=verdict
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--size', type=int, default=64, help='input pixels')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path(__file__).parent / 'results',
        help='folder of the Markdown and JSON',
    )


def parse_args(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if len(set(args.seeds)) != len(args.seeds) or len(args.seeds) not in T_95:
        parser.error(
            f'--seeds needs {min(T_95)} to {max(T_95)} different numbers'
        )
    return args


def measure(
    task: Classification,
    models: dict[str, Callable[[], nn.Module]],
    args: argparse.Namespace,
) -> dict[str, dict]:
    """Parameters, MACs, accuracies and times of every model."""
    results = {}
    for name, build in models.items():
        params, macs = complexity(build(), task.size)
        print(f'{name}: {params:,} parameters, {macs / 1e6:.2f} M MACs')
        results[name] = dict(params=params, macs=macs)
    runs = [train(task, models, args.epochs, seed) for seed in args.seeds]
    for name, model in results.items():
        own = [run[name] for run in runs]
        scores = [run['scores'][-1][1] for run in own]
        step_ms = [1000 * s for run in own for s in run['seconds']]
        model.update(
            accuracy=scores,
            last_train_loss=[run['loss'][-1] for run in own],
            mean=statistics.mean(scores),
            std=statistics.stdev(scores),
            step_ms_quartiles=statistics.quantiles(step_ms),
            train_seconds=[sum(run['seconds']) for run in own],
        )
    return results


def versions() -> dict:
    """What computed it, and when."""
    return dict(
        versions=dict(
            vcmamba_mm=__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            cpu=f'{platform.machine()}, {os.cpu_count()} cores',
        ),
        date=date.today().isoformat(),
    )


def environment(args: argparse.Namespace, begin: float) -> dict:
    """How and where it was run."""
    return dict(
        seeds=args.seeds,
        epochs=args.epochs,
        size=args.size,
        recipe=RECIPE,
        threads=args.threads,
        wall_seconds=time.perf_counter() - begin,
        **versions(),
    )


def sampling_error(percent: float, num_pictures: int) -> float:
    """Standard deviation of an accuracy on so many pictures."""
    return math.sqrt(percent * (100 - percent) / num_pictures)


def results_table(models: dict[str, dict], seeds: list[int]) -> list[str]:
    lines = [
        '| model | parameters | MACs | '
        + ' | '.join(f'seed {seed}' for seed in seeds)
        + ' | mean \u00b1 std | training step, ms (quartiles) '
        '| training of a seed, s |',
        '|---|' + '---:|' * (len(seeds) + 5),
    ]
    for name, model in models.items():
        q1, median, q3 = model['step_ms_quartiles']
        lines.append(
            f'| {name} | {model["params"]:,} | {model["macs"] / 1e6:.2f} M | '
            + ' | '.join(f'{a:.1f}' for a in model['accuracy'])
            + f' | {model["mean"]:.2f} \u00b1 {model["std"]:.2f} | '
            f'{median:.0f} ({q1:.0f}\u2013{q3:.0f}) | '
            f'{statistics.mean(model["train_seconds"]):.0f} |'
        )
    return lines


def difference_line(title: str, subject: str, difference: dict) -> str:
    return (
        f'- **{title}: {difference["mean"]:+.2f} \u00b1 '
        f'{difference["half_interval_95"]:.2f} points: {subject} '
        f'{VERDICTS[difference["verdict"]]}** (by seed: '
        + ', '.join(f'{value:+.1f}' for value in difference['values'])
        + ').'
    )


def environment_table(result: dict, shown: dict) -> list[str]:
    shown = {
        **shown,
        **result['recipe'],
        'epochs': result['epochs'],
        'threads': result['threads'],
        'wall time': f'{result["wall_seconds"] / 60:.0f} min',
        **result['versions'],
        'date': result['date'],
    }
    rows = (f'| {key} | {value} |' for key, value in shown.items())
    return ['| | |', '|---|---|', *rows, '']


def write_report(
    folder: Path, name: str, result: dict, lines: list[str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = '\n'.join(lines)
    (folder / f'{name}.md').write_text(text, encoding='utf-8')
    (folder / f'{name}.json').write_text(json.dumps(result, indent=2) + '\n')
    print(text)
