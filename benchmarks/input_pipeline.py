"""Pictures per second and core of ImageNet's training pipeline.

mmpretrain's own transforms against ours, which draw the same numbers and make
the same pictures, read from a folder, from tar shards, from an LMDB, and from
tar shards with decoded pictures; and ours without RandAugment and erasing,
which the model's device can do. Three tables: the whole pipeline in one
process, its stages, and the loader's throughput against its workers.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import input_pipeline_report
import measure
import mmpretrain.datasets
import numpy as np
import torch
from measure import Goal, WrongResultError
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

import vcmamba_mm.classification  # noqa: F401
from vcmamba_mm.analysis.timing import (
    FULL,
    QUICK,
    Call,
    Timing,
    time_side_by_side,
)
from vcmamba_mm.data import cropping
from vcmamba_mm.data.archives import find_files, write_lmdb, write_tar
from vcmamba_mm.data.sampling import offer_seed
from vcmamba_mm.training.command_line import one_line_errors

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/_base_/datasets'
STOCK, FAST, PLAIN = 'mmpretrain', 'fast', 'fast, without simplejpeg'
DEVICE = 'fast, augmented on the device (not counted)'
CONFIG_SUFFIX = {STOCK: '_stock', DEVICE: '_device'}
FOLDER, TAR, LMDB, DECODED = 'folder', 'tar', 'LMDB', 'tar, decoded'
MUST = 2.5  # times faster than mmpretrain's
BATCH_SIZE = 32
LOADER_ROUNDS, LOADER_BATCHES = 3, 40
QUICK_PICTURES = 8


class Contestant(NamedTuple):
    """A pipeline, and where its pictures are."""

    pipeline: str
    storage: str

    def __str__(self) -> str:
        return f'{self.pipeline}, from {self.storage}'


BASELINE = Contestant(STOCK, FOLDER)
CONTESTANTS = [
    BASELINE,
    *(Contestant(FAST, s) for s in (FOLDER, TAR, LMDB, DECODED)),
    Contestant(PLAIN, FOLDER),
    *(Contestant(DEVICE, s) for s in (FOLDER, TAR)),
]


def unpack(data: Path, target: Path) -> Path:
    """Return the folder that has ``train/<class>/<picture>``."""
    if data.is_dir():
        target = data
    else:
        shutil.unpack_archive(data, target)
    for folder in (target, *sorted(target.iterdir())):
        if (folder / 'train').is_dir():
            return folder
    raise FileNotFoundError(f'{data} has no folder train')


def make_up(target: Path) -> Path:
    """A few pictures of noise, for --quick."""
    generator = np.random.default_rng(0)
    (target / 'train/n0').mkdir(parents=True)
    for i in range(QUICK_PICTURES):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (400, 300))
        cv2.imwrite(str(target / f'train/n0/{i}.JPEG'), picture)
    return target


def store(folder: Path, target: Path) -> dict[str, str]:
    """Put the pictures into every storage; return their ``data_root``."""
    names = find_files(folder)

    def files(change: Callable[[bytes], bytes] = bytes):
        return ((name, change((folder / name).read_bytes())) for name in names)

    def decoded(content: bytes) -> bytes:
        image = cropping.decode_jpeg(content)
        return content if image is None else cropping.encode_ppm(image)

    write_tar(files(), target / 'tar')
    write_lmdb(files(), target / 'lmdb')
    write_tar(files(decoded), target / 'decoded')
    return {
        FOLDER: str(folder),
        TAR: f'tar://{target / "tar"}',
        LMDB: f'lmdb://{target / "lmdb"}',
        DECODED: f'tar://{target / "decoded"}',
    }


def load_config(contestant: Contestant, roots: dict[str, str]) -> Config:
    suffix = CONFIG_SUFFIX.get(contestant.pipeline, '')
    cfg = Config.fromfile(CONFIGS / f'imagenet_bs128_224{suffix}.py')
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = roots[contestant.storage]
    # The classes of a part of ImageNet are not all there.
    dataset.metainfo = dict(classes=None)
    return cfg


def without_simplejpeg(contestant: Contestant):
    """While this is entered, it cannot be used."""
    decoder = None if contestant.pipeline == PLAIN else cropping.simplejpeg
    return mock.patch.object(cropping, 'simplejpeg', decoder)


def one_pass(dataset: BaseDataset, contestant: Contestant) -> Call:
    """A function that augments all the pictures once."""

    def call(seed: int) -> None:
        with without_simplejpeg(contestant):
            for i in range(len(dataset)):
                with offer_seed((seed, 0, i)):
                    dataset[i]

    return call


def check(datasets: dict[Contestant, BaseDataset]) -> dict[str, float]:
    """Compare pictures of all contestants, made of the same draws.

    They are compared before erasing, or where the device augments them,
    before RandAugment.

    Returns:
        dict: Mean difference to mmpretrain's pixels, of 255.

    Raises:
        WrongResultError: If it is more than rounding and decoding at a smaller
            scale explain.
    """
    differences = {}
    expected = []
    for contestant, dataset in datasets.items():
        difference = []
        transforms = dataset.pipeline.transforms
        if contestant.pipeline == DEVICE:
            stages = [transforms[:-1]]
        else:
            stages = [transforms[:-3], transforms[-3:-2]]
        for i in range(min(len(dataset), 50)):
            results = dataset.get_data_info(i)
            images = []  # after each stage
            with offer_seed((0, 0, i)), without_simplejpeg(contestant):
                for stage in stages:
                    for transform in stage:
                        results = transform(results)
                    images.append(results['img'].astype(int))
            if contestant == BASELINE:
                expected.append(images)
            last = len(images) - 1
            difference.append(np.abs(images[last] - expected[i][last]).mean())
        differences[str(contestant)] = statistics.mean(difference)
        if statistics.median(difference) > 1:
            raise WrongResultError(
                f'{contestant}: pixels differ from {BASELINE} by '
                f'{statistics.median(difference):.1f} of 255'
            )
    return differences


def time_stages(
    dataset: BaseDataset, contestant: Contestant, passes: int
) -> dict[str, float]:
    """Median over passes of each transform's milliseconds per picture."""
    transforms = dataset.pipeline.transforms
    names = [type(t).__name__ for t in transforms]
    times = {name: [] for name in names}
    for seed in range(passes):
        seconds = dict.fromkeys(names, 0.0)
        for i in range(len(dataset)):
            data = dataset.get_data_info(i)
            with offer_seed((seed, 0, i)), without_simplejpeg(contestant):
                for name, transform in zip(names, transforms):
                    begin = time.perf_counter()
                    data = transform(data)
                    seconds[name] += time.perf_counter() - begin
        for name in names:
            times[name].append(1000 * seconds[name] / len(dataset))
    return {name: statistics.median(values) for name, values in times.items()}


def time_batches(function: Callable[[Tensor], object], passes: int) -> float:
    """Milliseconds per picture that the training process takes here."""
    inputs = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8)
    times = []
    for seed in range(passes + 1):
        np.random.seed(seed)
        begin = time.perf_counter()
        function(inputs)
        times.append(1000 * (time.perf_counter() - begin) / len(inputs))
    return statistics.median(times[1:])


def time_normalization(cfg: Config, passes: int) -> float:
    preprocessor = MODELS.build(
        dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
    )
    return time_batches(lambda x: preprocessor(dict(inputs=x)), passes)


def time_augmentation(cfg: Config, passes: int) -> float:
    augments = MODELS.build(cfg.data_preprocessor).augments

    def augment(images: Tensor) -> None:
        for each in augments:
            images = each(images)

    return time_batches(augment, passes)


def pictures_per_second(
    contestant: Contestant, roots: dict[str, str], workers: int, batches: int
) -> float:
    """Throughput of the loader, from when all its workers have begun."""
    loader = load_config(contestant, roots).train_dataloader
    loader.update(
        batch_size=BATCH_SIZE,
        num_workers=workers,
        persistent_workers=False,
        pin_memory=False,
        sampler=dict(
            type='SeededSampler',
            sampler=dict(type='InfiniteSampler', shuffle=True),
        ),
    )
    with without_simplejpeg(contestant):
        iterator = iter(Runner.build_dataloader(loader, seed=0))
    for _ in islice(iterator, 3 * workers):
        pass
    begin = time.perf_counter()
    for _ in islice(iterator, batches):
        pass
    seconds = time.perf_counter() - begin
    return batches * BATCH_SIZE / seconds


def time_loaders(
    args: argparse.Namespace, roots: dict[str, str]
) -> dict[tuple[Contestant, int], list[float]]:
    """Pictures per second of each contestant and number of workers."""
    rounds, batches = LOADER_ROUNDS, LOADER_BATCHES
    if args.quick:
        rounds, batches = 1, 1
    turns = [
        (contestant, workers)
        for contestant in CONTESTANTS
        if contestant.pipeline != PLAIN
        for workers in args.workers
    ]
    results = {turn: [] for turn in turns}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(turns)
        for contestant, workers in turns:
            rate = pictures_per_second(contestant, roots, workers, batches)
            results[contestant, workers].append(rate)
    return results


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'data',
        type=Path,
        nargs='?',
        help='tar or folder with train/<class>/<picture>; with --quick it may '
        'be left out',
    )
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 3, 4])
    measure.add_arguments(parser, devices=['cpu'])
    args = parser.parse_args(argv)
    if args.data is None and not args.quick:
        parser.error('name the pictures, or --quick')
    if min(args.workers) < 1:
        parser.error('--workers must be positive')
    return args


def run(args: argparse.Namespace, scratch: Path) -> None:
    begin = time.perf_counter()
    folder = (
        unpack(args.data, scratch / 'folder')
        if args.data
        else make_up(scratch / 'folder')
    )
    roots = store(folder, scratch)
    cfgs = {c: load_config(c, roots) for c in CONTESTANTS}
    datasets = {
        contestant: DATASETS.build(cfg.train_dataloader.dataset)
        for contestant, cfg in cfgs.items()
    }
    differences = check(datasets)
    effort = QUICK if args.quick else FULL
    pictures = len(datasets[BASELINE])
    timings = {
        contestant: Timing(
            tuple(
                [ms / pictures for ms in entry] for entry in timing.entries_ms
            ),
            timing.calls_per_sample,
            timing.warm_ups,
        )
        for contestant, timing in time_side_by_side(
            {c: one_pass(dataset, c) for c, dataset in datasets.items()},
            'cpu',
            **effort,
        ).items()
    }
    passes = effort['rounds']
    stages = {
        contestant: time_stages(datasets[contestant], contestant, passes)
        for contestant in CONTESTANTS
        if contestant.storage in (FOLDER, DECODED)
    }
    normalization = time_normalization(cfgs[BASELINE], passes)
    augmentation = time_augmentation(cfgs[Contestant(DEVICE, FOLDER)], passes)
    loaders = time_loaders(args, roots)
    goals = [
        Goal(
            f'{contestant}, against {BASELINE}',
            timings[contestant].times_faster_than(timings[BASELINE]),
            must=MUST,
        )
        for contestant in CONTESTANTS
        # DEVICE leaves a part of the work to others.
        if contestant.pipeline == FAST
    ]
    env = measure.environment('cpu')
    env |= dict(
        opencv=cv2.__version__,
        mmpretrain=mmpretrain.__version__,
        simplejpeg='not installed'
        if cropping.simplejpeg is None
        else cropping.simplejpeg.__version__,
    )
    env['wall time'] = f'{time.perf_counter() - begin:.0f} s'
    result = dict(
        benchmark='input_pipeline',
        device='cpu',
        quick=args.quick,
        environment=env,
        pictures=pictures,
        results=[
            dict(
                contestant=str(contestant),
                pixel_difference=differences[str(contestant)],
                stages_ms=stages.get(contestant),
                loader={
                    number: rates
                    for (other, number), rates in loaders.items()
                    if other == contestant
                },
                **timing.as_dict(),
            )
            for contestant, timing in timings.items()
        ],
        normalization_ms=normalization,
        augmentation_ms=augmentation,
        goals=[dict(asdict(g), verdict=g.verdict) for g in goals],
    )
    lines = input_pipeline_report.lines(
        timings,
        stages,
        normalization,
        augmentation,
        loaders,
        differences,
        goals,
        pictures,
    )
    figure = input_pipeline_report.plot(loaders)
    lines += measure.environment_section(env)
    measure.write_report(args, 'input_pipeline', 'cpu', result, lines, figure)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(0)  # as the runner does, for the workers
    init_default_scope('mmpretrain')
    with (
        tempfile.TemporaryDirectory() as scratch,
        one_line_errors(OSError, ImportError, WrongResultError),
    ):
        run(args, Path(scratch))


if __name__ == '__main__':
    main()
