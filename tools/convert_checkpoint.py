"""Rename a checkpoint's keys: released -> ours, or back with --reverse."""

import argparse
import os

from vcmamba_mm.checkpoints import (
    CheckpointError,
    from_released,
    is_released,
    read_checkpoint,
    take_weights,
    to_released,
    write_checkpoint,
)
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help='from our names to the released ones',
    )
    add_weights_argument(parser)
    return parser.parse_args()


def convert(src: str, dst: str, reverse: bool, weights: str | None) -> int:
    """Convert a file; return how many keys it has."""
    if os.path.realpath(src) == os.path.realpath(dst):
        raise CheckpointError(
            f'{dst} is the checkpoint to convert: name another file to write'
        )
    state_dict = take_weights(read_checkpoint(src), src, weights)
    if is_released(state_dict) == reverse:
        raise CheckpointError(
            f'checkpoint {src} has released names: leave out --reverse'
            if reverse
            else f'checkpoint {src} has no released names: to go the other '
            'way use --reverse'
        )
    meta = dict(source=os.path.basename(src))
    if not reverse:
        converted = dict(meta=meta, state_dict=from_released(state_dict, src))
    else:
        released = to_released(state_dict, src)
        # Models with a `backbone.` are checkpoints of MMCV or MMEngine.
        converted = (
            dict(meta=meta, state_dict=released)
            if any(key.startswith('backbone.') for key in released)
            else dict(model=released)
        )
    write_checkpoint(converted, dst)
    return len(state_dict)


def main() -> None:
    args = parse_args()
    with one_line_errors(CheckpointError, OSError):
        count = convert(args.src, args.dst, args.reverse, args.weights)
    print(f'{count} keys written to {args.dst}')


if __name__ == '__main__':
    main()
