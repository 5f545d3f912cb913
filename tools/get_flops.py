"""Parameters and multiply-accumulates of a config's model, scan included."""

import argparse

from vcmamba_mm.analysis.complexity import model_complexity
from vcmamba_mm.engine import SETUP_ERRORS, one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='SIZE',
        help='height and width in pixels, or one number for both; by default '
        'the size the position embedding is made for',
    )
    args = parser.parse_args()
    if args.shape and len(args.shape) > 2:
        parser.error('--shape takes one or two numbers')
    return args


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        complexity = model_complexity(args.config, args.shape)
    height, width = complexity.shape
    print(f'input       {height} x {width}')
    print(f'parameters  {complexity.params / 1e6:.3f} M')
    print(f'MACs        {complexity.macs / 1e9:.3f} G')
    print(f'  of the scan {complexity.scan_macs / 1e9:.3f} G')


if __name__ == '__main__':
    main()
