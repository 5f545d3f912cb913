"""The parts of the quick start that are not training or testing."""

import argparse
import sys

from ..checkpoint import CheckpointError
from .data import write_dataset
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
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.command == 'data':
            written = write_dataset(args.root, args.seed)
            print(f'{args.root}: ' + ('written' if written else 'was there'))
        else:
            print(f'written: {write_report(args.work_dir, args.out)}')
    except (OSError, CheckpointError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
