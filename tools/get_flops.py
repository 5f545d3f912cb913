"""Parameters and multiply-accumulates of a config's model, scan included.

The last line counts as the authors of the backbone did, where they say how.
"""

import argparse

from vcmamba_mm.analysis.complexity import build_model, model_complexity
from vcmamba_mm.model_zoo import image_size, load_config
from vcmamba_mm.training.command_line import one_line_errors
from vcmamba_mm.training.errors import SETUP_ERRORS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file, or name of a model')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        action='append',
        metavar='SIZE',
        help='height and width in pixels, or one number for both; may be '
        'given several times; by default the size that the config is made for',
    )
    args = parser.parse_args()
    if any(len(shape) > 2 for shape in args.shape or []):
        parser.error('--shape takes one or two numbers')
    return args


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        cfg = load_config(args.config)
        model = build_model(cfg)
        shapes = args.shape or [image_size(cfg)]
        shapes = [(shape[0], shape[-1]) for shape in shapes]
        counts = [model_complexity(model, shape) for shape in shapes]
    titles = [f'{height} x {width}' for height, width in shapes]
    print(f'{"":9} {"parameters":>12}', *(f'{t:>14}' for t in titles))
    for part, first in counts[0].items():
        macs = [count[part].macs for count in counts]
        print_row(part, f'{first.params / 1e6:.3f} M', macs)
    scans = [count['total'].scan_macs for count in counts]
    print_row('  scan', '', scans)
    if model.backbone.mac_rule:
        authors = [count['total'].authors_macs for count in counts]
        print_row("authors'", '', authors)


def print_row(title: str, params: str, macs: list[int]) -> None:
    cells = (f'{n / 1e9:.3f} GMAC' for n in macs)
    print(f'{title:9} {params:>12}', *(f'{cell:>14}' for cell in cells))


if __name__ == '__main__':
    main()
