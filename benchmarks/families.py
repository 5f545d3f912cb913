"""Do the families learn? Small backbones of about equal size, side by side.

They are trained from scratch on the same batches, in the same order, with the
same augmentation and the same recipe: on the built-in data set, digits on
photographs, on CIFAR-10, and to segment CamVid with one and the same head. A
family is a line of ``FAMILIES``.

What has been trained is kept in ``families.json`` and not trained again, as
long as its settings are the same. So a comparison can be interrupted, or done
in parts (``--runs``).
"""

import argparse
import json
import tarfile
import tempfile
from functools import cache, partial
from inspect import signature
from pathlib import Path

import families_report
import small_segmentation as segmentation
import small_training as small
import torch
from torch import nn

from vcmamba_mm.demo import data as digits
from vcmamba_mm.files import write_file
from vcmamba_mm.models import MambaVision, PlainMamba, VCMamba, VMamba
from vcmamba_mm.training.command_line import one_line_errors

# Parameters within 2 %; three stages each, but for PlainMamba. That has
# tokens of 8 pixels instead of 16, as pictures are small, and no further
# convolutions in the stem, which would be most of its work.
FAMILIES = dict(
    VCMamba=dict(
        type=VCMamba,
        arch=dict(embed_dims=(24, 48, 64), depths=(1, 1, 3), num_mdm=2),
        layer_scale_init_value=1.0,
    ),
    VMamba=dict(
        type=VMamba,
        arch=dict(embed_dims=(24, 48, 80), depths=(1, 1, 2), expand=1.5),
    ),
    MambaVision=dict(
        type=MambaVision,
        arch=dict(
            embed_dims=(24, 48, 66),
            depths=(1, 1, 3),
            stem_dims=24,
            num_heads=(3,),
            layer_scale=None,
        ),
        window_size='map',
    ),
    PlainMamba=dict(
        type=PlainMamba,
        arch=dict(embed_dims=46, depth=8, stem_convs=0, extra_conv=True),
        patch_size=4,
    ),
)
# What the families' configs have for a classifier, and for a segmenter.
NECK_NORMS = dict(MambaVision=dict(type='BN'))
CLASSIFIERS = dict(PlainMamba=dict(final_norm=False))  # the neck has it
SEGMENTERS = dict(
    VCMamba=dict(out_indices=(0, 1, 2), img_size=64),
    VMamba=dict(out_indices=(0, 1, 2), out_norms=True),
    MambaVision=dict(out_indices=(0, 1, 2), out_norms=True),
    PlainMamba=dict(out_indices=(2, 4, 7), out_norms=True, img_size=64),
)
DATA = CIFAR10, DIGITS, CAMVID = 'CIFAR-10', 'Digits on photographs', 'CamVid'


def arguments(name: str, data: str) -> dict:
    """Of a family's backbone, and its type."""
    more = SEGMENTERS if data == CAMVID else CLASSIFIERS
    return {**FAMILIES[name], **more.get(name, {})}


def build(name: str, data: str, task: small.Classification) -> nn.Module:
    """A family's model for a task."""
    kwargs = arguments(name, data)
    backbone = kwargs.pop('type')
    if 'img_size' in signature(backbone).parameters:
        kwargs.setdefault('img_size', task.size)
    backbone = backbone(**kwargs)
    if data == CAMVID:
        return segmentation.Segmenter(backbone, task.num_classes)
    return small.Classifier(backbone, task.num_classes, NECK_NORMS.get(name))


def settings(name: str, data: str, args: argparse.Namespace) -> dict:
    """What a score depends on beside the seed and the code; as in JSON."""
    segments = data == CAMVID
    task = segmentation.Segmentation if segments else small.Classification
    model = arguments(name, data)
    del model['type']
    found = dict(
        model=model,
        size=segmentation.CROP if segments else args.size,
        flips=data != DIGITS,
        epochs=args.epochs,
        recipe=task.recipe,
    )
    return json.loads(json.dumps(found))


def load_task(data: str, args: argparse.Namespace) -> small.Classification:
    if data == CAMVID:
        return segmentation.Segmentation(segmentation.load_data(args.camvid))
    if data == CIFAR10:
        pictures, _ = small.load_data(args.cifar10, 32)
        return small.Classification(pictures, args.size)
    with tempfile.TemporaryDirectory() as folder:
        root = args.digits or Path(folder) / 'digits'
        if not args.digits:
            digits.write_dataset(root)
        pictures, _ = small.load_data(
            root / 'classification', digits.CLASSIFICATION_SIZE, 'val'
        )
    return small.Classification(pictures, args.size, flips=False)


def number(task: small.Classification) -> list[int]:
    """Of images to learn from, and to test."""
    return [len(task.x), len(task.test[0])]


def read_runs(path: Path) -> list[dict]:
    return json.loads(path.read_text())['runs'] if path.exists() else []


def train(key: dict, task: small.Classification) -> dict:
    """The key with what came out."""
    make = partial(build, key['model'], key['data'], task)
    params, macs = small.complexity(make(), task.size)
    epochs = key['settings']['epochs']
    log = small.train(task, {key['model']: make}, epochs, key['seed'])
    log = log[key['model']]
    return dict(
        key,
        params=params,
        macs=macs,
        pictures=number(task),
        score_name=task.score_name,
        scores=log['scores'],
        loss=log['loss'],
        seconds=sum(log['seconds']),
        **small.versions(),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--cifar10',
        type=Path,
        help='tar or folder with {train,test}/<class>/*.jpg, 32 x 32 pixels',
    )
    parser.add_argument(
        '--camvid',
        type=Path,
        help='tar or folder with {images,annotations}/{train,val}, '
        '480 x 360 pixels',
    )
    parser.add_argument(
        '--digits',
        type=Path,
        help='folder of the built-in data set; by default it is made anew',
    )
    parser.add_argument(
        '--data',
        nargs='+',
        choices=DATA,
        default=DATA,
        help='train on these; all that is there is reported',
    )
    parser.add_argument(
        '--runs',
        type=int,
        help='train so many of the models that are missing; by default all '
        'those whose data are given',
    )
    small.add_arguments(parser)
    args = small.parse_args(parser, argv)
    torch.set_num_threads(args.threads)
    path = args.out / 'families.json'
    runs = read_runs(path)
    keys = [
        dict(
            data=data,
            model=name,
            seed=seed,
            settings=settings(name, data, args),
        )
        for seed in args.seeds
        for data in DATA
        for name in FAMILIES
    ]

    def find(key: dict) -> dict | None:
        return next((run for run in runs if {**run, **key} == run), None)

    given = {CIFAR10: args.cifar10, DIGITS: True, CAMVID: args.camvid}
    missing = [
        key
        for key in keys
        if key['data'] in args.data and given[key['data']] and not find(key)
    ]
    task = cache(partial(load_task, args=args))
    for data in args.data:
        if given[data] and any(
            run['data'] == data and run['pictures'] != number(task(data))
            for run in filter(None, map(find, keys))
        ):
            parser.error(
                f'{path} has runs of {data} with other numbers of images: '
                'name another --out'
            )
    for key in missing[: args.runs]:
        with one_line_errors(ValueError, OSError, tarfile.TarError):
            run = train(key, task(key['data']))
            # Another process may have trained others in the meantime.
            runs = [*read_runs(path), run]
            content = json.dumps(dict(runs=runs), indent=1) + '\n'
            write_file(content.encode(), path)
    shown = list(filter(None, map(find, keys)))
    if not shown:
        parser.error('none of these models has been trained')
    models = {
        name: ', '.join(f'{k}={v}' for k, v in its['arch'].items())
        for name, its in FAMILIES.items()
    }
    text = '\n'.join(families_report.lines(shown, models))
    path.with_suffix('.md').write_text(text, encoding='utf-8')
    families_report.plot(shown).savefig(path.with_suffix('.png'), dpi=150)
    print(text)


if __name__ == '__main__':
    main()
