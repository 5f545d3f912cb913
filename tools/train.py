"""Train a classifier, a segmenter or a detector; the config decides."""

import argparse
import os

from vcmamba_mm.training.command_line import (
    LOOP_ERRORS,
    add_common_arguments,
    one_line_errors,
)
from vcmamba_mm.training.config import load_config, set_precision
from vcmamba_mm.training.errors import SETUP_ERRORS
from vcmamba_mm.training.runner import build_runner


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        # torchrun starts this program again, on a host that came back too.
        default='auto'
        if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0))
        else None,
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a path, from the latest '
        'good one in the work dir, or begin if there is none. That is the '
        'default under torchrun --max-restarts, which takes a run up again '
        'from the latest that came of the one named',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='float16',
        choices=['float16', 'bfloat16', 'float32'],
        help='automatic mixed precision; without a type, float16; float32 '
        'for none where the config has it',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='do not evaluate during training',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        cfg = load_config(args)
        if args.amp:
            cfg.precision = args.amp
            set_precision(cfg, args.amp)
        if args.auto_scale_lr:
            if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
                raise ValueError(
                    '--auto-scale-lr needs auto_scale_lr = '
                    'dict(base_batch_size=...) in the config'
                )
            cfg.auto_scale_lr.enable = True
            # MMEngine does not count what is accumulated as one batch.
            cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get(
                'accumulative_counts', 1
            )
        if args.no_validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.resume_from = args.resume
        runner = build_runner(cfg, 'train', 'val')
    with one_line_errors(*LOOP_ERRORS):
        runner.train()


if __name__ == '__main__':
    main()
