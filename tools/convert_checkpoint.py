"""Rename a checkpoint's keys: released -> ours, or back with --reverse."""

import argparse
import os

from vcmamba_mm.checkpoint import (
    CheckpointError,
    extract_state_dict,
    is_released,
    read_checkpoint,
    to_released,
    write_checkpoint,
)
from vcmamba_mm.engine import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help='from our names to the released ones',
    )
    parser.add_argument(
        '--key',
        choices=['model', 'model_ema'],
        default='model',
        help='which weights of a released file: raw or averaged',
    )
    return parser.parse_args()


def convert(src: str, dst: str, reverse: bool, key: str) -> int:
    """Convert a file; return how many keys it has."""
    if os.path.realpath(src) == os.path.realpath(dst):
        raise CheckpointError(
            f'{dst} is the checkpoint to convert: name another file to write'
        )
    checkpoint = read_checkpoint(src)
    released = any(
        isinstance(weights, dict) and is_released(weights)
        for weights in (checkpoint, checkpoint.get(key))
    )
    if released == reverse:
        raise CheckpointError(
            f'checkpoint {src} has {"released" if released else "no released"}'
            f' names{"" if released else f" under {key!r}"}: '
            f'{"leave out" if reverse else "to go the other way use"} '
            '--reverse'
        )
    state_dict = extract_state_dict(checkpoint, src, key)
    converted = (
        dict(model=to_released(state_dict))
        if reverse
        else dict(
            meta=dict(source=os.path.basename(src), key=key),
            state_dict=state_dict,
        )
    )
    write_checkpoint(converted, dst)
    return len(state_dict)


def main() -> None:
    args = parse_args()
    with one_line_errors(CheckpointError, OSError):
        count = convert(args.src, args.dst, args.reverse, args.key)
    print(f'{count} keys written to {args.dst}')


if __name__ == '__main__':
    main()
