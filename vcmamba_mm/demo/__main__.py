"""A data set that needs no download, its report, and images of one's own."""

import argparse
import sys

from ..training.command_line import add_weights_argument
from .data import write_dataset
from .image import paint_pictures
from .report import write_report


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m vcmamba_mm.demo', description=__doc__
    )
    commands = parser.add_subparsers(dest='command', required=True)
    data = commands.add_parser('data', help='write the built-in data set')
    data.add_argument(
        '--root', default='data/demo', help='folder to make (%(default)s)'
    )
    data.add_argument(
        '--seed', type=int, default=0, help='of everything random'
    )
    report = commands.add_parser('report', help='write the HTML report')
    report.add_argument(
        '--work-dir',
        default='work_dirs/demo',
        help='folder with classifier/ and segmenter/ (%(default)s)',
    )
    report.add_argument('--out', help='the page (report.html in the work dir)')
    image = commands.add_parser(
        'image', help='paint the classes or the masks that a model predicts'
    )
    image.add_argument(
        'paths', nargs='+', metavar='PATH', help='images and folders of them'
    )
    image.add_argument(
        '--model',
        required=True,
        metavar='NAME_OR_CONFIG',
        help='such as vcmamba_b_distill_8xb128_in1k, or a config file',
    )
    image.add_argument(
        '--checkpoint', required=True, help='ours or a released one'
    )
    image.add_argument(
        '--out', required=True, help='folder for the painted images'
    )
    add_weights_argument(image)
    image.add_argument('--device', help='the GPU if there is one')
    return parser.parse_args(argv)


def paint(args: argparse.Namespace) -> int:
    seen, failed = paint_pictures(
        args.paths,
        args.model,
        args.checkpoint,
        args.out,
        args.device,
        args.weights,
    )
    for path, text in seen.items():
        print(f'{path}: {text}')
    for error in failed.values():
        print(f'error: {error}', file=sys.stderr)
    print(f'{len(seen)} painted in {args.out}, {len(failed)} not')
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.command == 'data':
            written = write_dataset(args.root, args.seed)
            print(f'{args.root}: ' + ('written' if written else 'was there'))
        elif args.command == 'report':
            print(f'written: {write_report(args.work_dir, args.out)}')
        else:
            return paint(args)
    except (OSError, ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
