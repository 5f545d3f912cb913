"""Draw the figure of an architecture, as in docs/pictures."""

import argparse
from pathlib import Path

from _canvas import write_png
from _draw_mambavision import draw as draw_mambavision
from _draw_plainmamba import draw as draw_plainmamba
from _draw_vcmamba import draw as draw_vcmamba
from _draw_vmamba import draw as draw_vmamba
from matplotlib import style

from vcmamba_mm.training.command_line import one_line_errors

FIGURES = dict(
    VCMamba=draw_vcmamba,
    VMamba=draw_vmamba,
    MambaVision=draw_mambavision,
    PlainMamba=draw_plainmamba,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', choices=FIGURES, default='VCMamba')
    parser.add_argument(
        '--out', type=Path, required=True, help='PNG file to write'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(OSError):
        if not args.out.parent.is_dir():
            raise FileNotFoundError(
                f'folder {args.out.parent} does not exist: make it, or name '
                'another with --out'
            )
        with style.context('default'):
            write_png(FIGURES[args.model](), args.out)


if __name__ == '__main__':
    main()
