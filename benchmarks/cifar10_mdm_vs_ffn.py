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
import tarfile
import time
from pathlib import Path
from unittest import mock

import small_training as small
import torch
from torch import Tensor, nn

from vcmamba_mm.models import VCMamba
from vcmamba_mm.models.vcmamba import mixer
from vcmamba_mm.training.command_line import one_line_errors

MDM = dict(embed_dims=(24, 48, 64), depths=(1, 1, 3), num_mdm=2)
FFN = dict(embed_dims=(24, 48, 64), depths=(2, 1, 5), num_mdm=0)
MODELS = dict(
    mdm=dict(arch=MDM),
    ffn=dict(arch=FFN),
    mdm_without_scan=dict(arch=MDM, scan=False),
)


class Classifier(small.Classifier):
    """VCMamba, with its scan or without."""

    def __init__(
        self, arch: dict, img_size: int, num_classes: int, scan: bool = True
    ):
        backbone = VCMamba(
            arch,
            img_size=img_size,
            layer_scale_init_value=1.0,
            drop_path_rate=small.RECIPE['drop_path_rate'],
        )
        super().__init__(backbone, num_classes)
        self.scan = mixer.path_scan if scan else _skip_only

    def forward(self, x: Tensor) -> Tensor:
        with mock.patch.object(mixer, 'path_scan', self.scan):
            return super().forward(x)


def _skip_only(x: Tensor, D: Tensor, **others) -> Tensor:
    return 4 * D * x


def report(result: dict) -> list[str]:
    """The report of the JSON's content."""
    pictures = result['pictures']
    return [
        '# CIFAR-10: MDM blocks against FFN blocks',
        '',
        'Written by `benchmarks/cifar10_mdm_vs_ffn.py`. Top-1 test accuracy '
        'in percent; training steps timed side by side in one process.',
        '',
        *small.results_table(result['models'], result['seeds']),
        '',
        *(
            small.difference_line(f'mdm \u2212 {name}', 'mdm', difference)
            for name, difference in result['differences'].items()
        ),
        '',
        'A difference is the mean over seeds, paired by seed, \u00b1 half '
        "of its 95 % interval (Student's t); clear is what excludes 0. "
        'mdm_without_scan is mdm with 4 D x in place of the scan (its '
        'parameters are those that still have an effect). One run on '
        f'{pictures["test"]} test pictures is uncertain by '
        f'about {result["sampling_error"]:.1f} points besides. The models '
        'are small and briefly trained: this says nothing about ImageNet.',
        '',
        *small.environment_table(
            result,
            {
                **{
                    name: ', '.join(f'{k}={v}' for k, v in its['arch'].items())
                    for name, its in MODELS.items()
                },
                'input': f'{result["size"]} px, upsampled from 32',
                'pictures': f'{pictures["train"]} train, '
                f'{pictures["test"]} test',
            },
        ),
    ]


def main(argv: list[str] | None = None) -> None:
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
    small.add_arguments(parser)
    args = small.parse_args(parser, argv)
    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    with one_line_errors(ValueError, OSError, tarfile.TarError):
        data, classes = small.load_data(args.data, 32)

    def builder(kwargs: dict) -> nn.Module:
        return lambda: Classifier(
            img_size=args.size, num_classes=len(classes), **kwargs
        )

    models = small.measure(
        small.Classification(data, args.size),
        {name: builder(its) for name, its in MODELS.items()},
        args,
    )
    accuracies = {name: its['accuracy'] for name, its in models.items()}
    result = dict(
        models=models,
        differences={
            name: small.compare(accuracies['mdm'], accuracies[name])
            for name in ('ffn', 'mdm_without_scan')
        },
        pictures={split: len(y) for split, (_, y) in data.items()},
        sampling_error=small.sampling_error(
            models['mdm']['mean'], len(data['test'][1])
        ),
        **small.environment(args, begin),
    )
    small.write_report(args.out, 'cifar10_mdm_vs_ffn', result, report(result))


if __name__ == '__main__':
    main()
