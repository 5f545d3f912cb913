"""Do the MDM blocks help? A small VCMamba against convolution alone.

Three models are trained from scratch on the same batches of CIFAR-10, in the
same order, with the same augmentation and the same recipe:

mdm: two FFN blocks of the last stage are multi-directional Mamba blocks;
ffn: FFN blocks only, with no fewer parameters and no fewer MACs than mdm;
mdm_without_scan: mdm whose scan is replaced by its skip 4 D x, so that tokens
    meet only in convolutions. It tells the scan's part from that of the block
    around it (7 x 7 convolution, position embedding).
"""

import argparse
import io
import json
import math
import os
import platform
import statistics
import tarfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

from vcmamba_mm import __version__
from vcmamba_mm.models import NormGlobalAveragePooling, VCMamba
from vcmamba_mm.models.vcmamba import mixer
from vcmamba_mm.training.command_line import one_line_errors

MDM = dict(embed_dims=(24, 48, 64), depths=(1, 1, 3), num_mdm=2)
FFN = dict(embed_dims=(24, 48, 64), depths=(2, 1, 5), num_mdm=0)
MODELS = dict(
    mdm=dict(arch=MDM),
    ffn=dict(arch=FFN),
    mdm_without_scan=dict(arch=MDM, scan=False),
)
RECIPE = dict(
    batch_size=50,
    optimizer='AdamW',
    lr=2e-3,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    no_weight_decay='biases, one-dimensional parameters',
    schedule='one epoch linear warm-up, cosine to 0',
    label_smoothing=0.1,
    augmentation='reflection padding 4, random crop 32, horizontal flip',
    upsampling='bilinear',
    layer_scale_init_value=1.0,
    drop_path_rate=0.0,
    tested='after the last epoch, no selection',
)
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
    """Backbone, LayerNorm, mean over the tokens, linear classifier."""

    def __init__(
        self, arch: dict, img_size: int, num_classes: int, scan: bool = True
    ):
        super().__init__()
        last, dims = len(arch['depths']) - 1, arch['embed_dims'][-1]
        self.backbone = VCMamba(
            arch,
            img_size=img_size,
            out_indices=last,
            drop_path_rate=RECIPE['drop_path_rate'],
            layer_scale_init_value=RECIPE['layer_scale_init_value'],
        )
        self.neck = NormGlobalAveragePooling(dims)
        self.fc = nn.Linear(dims, num_classes)
        self.scan = mixer.multi_directional_scan if scan else _skip_only

    def forward(self, x: Tensor) -> Tensor:
        with mock.patch.object(mixer, 'multi_directional_scan', self.scan):
            return self.fc(self.neck(self.backbone(x))[0])


def _skip_only(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *args,
    **kwargs,
) -> Tensor:
    return 4 * D * x


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


def load_data(path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], list]:
    """Read ``.../{train,test}/<class>/<picture>``.

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
        if split not in pictures:
            raise ValueError(f'{name} is not in train/<class> or test/<class>')
        try:
            image = np.array(Image.open(io.BytesIO(content)).convert('RGB'))
        except OSError as error:
            raise ValueError(f'{name} cannot be read as a picture') from error
        if image.shape != (32, 32, 3):
            raise ValueError(f'{name} has not 32 x 32 pixels')
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


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by 4, cut 32 x 32 pixels out at random, flip half of them."""
    top, left = torch.randint(9, (2, len(x)), generator=generator)
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = F.pad(x, (4, 4, 4, 4), mode='reflect')
    x = x.unfold(2, 32, 1).unfold(3, 32, 1)[torch.arange(len(x)), :, top, left]
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def complexity(model: Classifier, size: int) -> tuple[int, int]:
    """Parameters that the output depends on, and MACs of one picture."""
    model.eval()
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(1, 3, size, size))
    logits.sum().backward()
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


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = sum(
        (model(xs).argmax(1) == ys).sum().item()
        for xs, ys in zip(x.split(200), y.split(200))
    )
    return 100 * hits / len(y)


def train(
    data: dict, num_classes: int, size: int, epochs: int, seed: int
) -> dict[str, dict]:
    """Train each model with one seed, all of them step by step side by side.

    Returns:
        dict: For each of ``MODELS`` the test accuracy in percent, the mean
        training loss of the last epoch, and the seconds of every step.
    """
    x, y = data['train']
    mean = x.float().mean((0, 2, 3), keepdim=True)
    std = x.float().std((0, 2, 3), keepdim=True)

    def prepare(pictures: Tensor) -> Tensor:
        return F.interpolate((pictures - mean) / std, size, mode='bilinear')

    generator = torch.Generator().manual_seed(seed)
    batch_size = RECIPE['batch_size']
    steps = math.ceil(len(x) / batch_size)
    runs = {}
    for name, kwargs in MODELS.items():
        torch.manual_seed(seed)
        model = Classifier(img_size=size, num_classes=num_classes, **kwargs)
        runs[name] = (
            model,
            *optimizer_and_schedule(model, epochs, steps),
            dict(loss=[], seconds=[]),
        )
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for model, *_ in runs.values():
            model.train()
        for chosen in order.split(batch_size):
            inputs = prepare(augment(x[chosen].float(), generator))
            for model, optimizer, schedule, log in runs.values():
                start = time.perf_counter()
                loss = F.cross_entropy(
                    model(inputs),
                    y[chosen],
                    label_smoothing=RECIPE['label_smoothing'],
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                log['loss'].append(loss.item())
                log['seconds'].append(time.perf_counter() - start)
        print(
            f'seed {seed} epoch {epoch + 1}/{epochs}',
            *(
                f'{name} loss {statistics.mean(log["loss"][-steps:]):.3f}'
                for name, (*_, log) in runs.items()
            ),
            sep='  ',
            flush=True,
        )
    test = prepare(data['test'][0].float())
    return {
        name: dict(
            accuracy=accuracy(model, test, data['test'][1]),
            loss=statistics.mean(log['loss'][-steps:]),
            seconds=log['seconds'],
        )
        for name, (model, _, _, log) in runs.items()
    }


def compare(a: list[float], b: list[float]) -> dict:
    """Paired differences a - b, their mean, and the half of its 95 % interval.

    Clear is what excludes 0.
    """
    values = [round(p - q, 4) for p, q in zip(a, b)]
    mean = statistics.mean(values)
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    verdict = (
        'undecided' if abs(mean) <= half else 'wins' if mean > 0 else 'loses'
    )
    return dict(
        values=values, mean=mean, half_interval_95=half, verdict=verdict
    )


def markdown(result: dict) -> str:
    """The report of the JSON's content."""
    seeds = result['seeds']
    lines = [
        '# CIFAR-10: MDM blocks against FFN blocks',
        '',
        'Written by `benchmarks/cifar10_mdm_vs_ffn.py`. Top-1 test accuracy '
        'in percent; training steps timed side by side in one process.',
        '',
        '| model | parameters | MACs | '
        + ' | '.join(f'seed {seed}' for seed in seeds)
        + ' | mean \u00b1 std | training step, ms (quartiles) '
        '| training of a seed, s |',
        '|---|' + '---:|' * (len(seeds) + 5),
    ]
    for name, model in result['models'].items():
        q1, median, q3 = model['step_ms_quartiles']
        lines.append(
            f'| {name} | {model["params"]:,} | {model["macs"] / 1e6:.2f} M | '
            + ' | '.join(f'{a:.1f}' for a in model['accuracy'])
            + f' | {model["mean"]:.2f} \u00b1 {model["std"]:.2f} | '
            f'{median:.0f} ({q1:.0f}\u2013{q3:.0f}) | '
            f'{statistics.mean(model["train_seconds"]):.0f} |'
        )
    lines.append('')
    for name, difference in result['differences'].items():
        lines.append(
            f'- **mdm \u2212 {name}: {difference["mean"]:+.2f} \u00b1 '
            f'{difference["half_interval_95"]:.2f} points: mdm '
            f'{VERDICTS[difference["verdict"]]}** (by seed: '
            + ', '.join(f'{value:+.1f}' for value in difference['values'])
            + ').'
        )
    shown = {
        **{
            name: ', '.join(f'{k}={v}' for k, v in model['arch'].items())
            for name, model in result['models'].items()
        },
        **result['recipe'],
        'input': f'{result["size"]} px, upsampled from 32',
        'epochs': result['epochs'],
        'pictures': f'{result["pictures"]["train"]} train, '
        f'{result["pictures"]["test"]} test',
        'threads': result['threads'],
        'wall time': f'{result["wall_seconds"] / 60:.0f} min',
        **result['versions'],
        'date': result['date'],
    }
    lines += [
        '',
        'A difference is the mean over seeds, paired by seed, \u00b1 half '
        "of its 95 % interval (Student's t); clear is what excludes 0. "
        'mdm_without_scan is mdm with 4 D x in place of the scan (its '
        'parameters are those that still have an effect). One run on '
        f'{result["pictures"]["test"]} test pictures is uncertain by '
        f'about {result["sampling_error"]:.1f} points besides. The models '
        'are small and briefly trained: this says nothing about ImageNet.',
        '',
        '| | |',
        '|---|---|',
        *(f'| {key} | {value} |' for key, value in shown.items()),
        '',
    ]
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--data',
        type=Path,
        required=True,
        help='tar or folder with {train,test}/<class>/*.jpg, 32 x 32 pixels',
    )
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
    args = parser.parse_args()
    if len(set(args.seeds)) != len(args.seeds) or len(args.seeds) not in T_95:
        parser.error(
            f'--seeds needs {min(T_95)} to {max(T_95)} different numbers'
        )
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    with one_line_errors(ValueError, OSError, tarfile.TarError):
        data, classes = load_data(args.data)
    result = dict(models={}, differences={})
    for name, kwargs in MODELS.items():
        model = Classifier(
            img_size=args.size, num_classes=len(classes), **kwargs
        )
        params, macs = complexity(model, args.size)
        print(f'{name}: {params:,} parameters, {macs / 1e6:.2f} M MACs')
        result['models'][name] = dict(
            arch=kwargs['arch'], params=params, macs=macs
        )

    runs = [
        train(data, len(classes), args.size, args.epochs, seed)
        for seed in args.seeds
    ]
    for name, model in result['models'].items():
        own = [run[name] for run in runs]
        step_ms = [1000 * s for run in own for s in run['seconds']]
        model.update(
            accuracy=[run['accuracy'] for run in own],
            last_train_loss=[run['loss'] for run in own],
            mean=statistics.mean(run['accuracy'] for run in own),
            std=statistics.stdev(run['accuracy'] for run in own),
            step_ms_quartiles=statistics.quantiles(step_ms),
            train_seconds=[sum(run['seconds']) for run in own],
        )
    accuracies = {
        name: model['accuracy'] for name, model in result['models'].items()
    }
    for name in ('ffn', 'mdm_without_scan'):
        result['differences'][name] = compare(
            accuracies['mdm'], accuracies[name]
        )
    num_test, level = len(data['test'][1]), result['models']['mdm']['mean']
    result.update(
        seeds=args.seeds,
        epochs=args.epochs,
        size=args.size,
        recipe=RECIPE,
        pictures={split: len(y) for split, (_, y) in data.items()},
        sampling_error=math.sqrt(level * (100 - level) / num_test),
        threads=args.threads,
        wall_seconds=time.perf_counter() - start,
        versions=dict(
            vcmamba_mm=__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            cpu=f'{platform.machine()}, {os.cpu_count()} cores',
        ),
        date=date.today().isoformat(),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(result)
    (args.out / 'cifar10_mdm_vs_ffn.md').write_text(text, encoding='utf-8')
    (args.out / 'cifar10_mdm_vs_ffn.json').write_text(
        json.dumps(result, indent=2) + '\n'
    )
    print(text)


if __name__ == '__main__':
    main()
