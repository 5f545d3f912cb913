"""Train a classifier or a segmenter; the config decides."""

import argparse

from mmengine.device import get_device

from vcmamba_mm.engine import (
    LOOP_ERRORS,
    SETUP_ERRORS,
    add_common_arguments,
    build_runner,
    load_config,
    one_line_errors,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a path, from the latest good '
        'one in the work dir, or begin if there is none',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (GPU)'
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
            if get_device() == 'cpu':
                raise ValueError(
                    '--amp needs a GPU, and none was found: '
                    'leave it out to train in float32'
                )
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if args.auto_scale_lr:
            if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
                raise ValueError(
                    '--auto-scale-lr needs auto_scale_lr = '
                    'dict(base_batch_size=...) in the config'
                )
            cfg.auto_scale_lr.enable = True
        if args.no_validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.resume_from = args.resume
        runner = build_runner(cfg, 'train', 'val')
    with one_line_errors(*LOOP_ERRORS):
        runner.train()


if __name__ == '__main__':
    main()
