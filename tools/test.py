"""Test a classifier (top-1/5), segmenter (mIoU) or detector (mAP), by config.

The checkpoint may be one of this project or one the authors released.
"""

import argparse

from mmengine.config import Config

from vcmamba_mm.data.pictures import tested_datasets
from vcmamba_mm.training.command_line import (
    LOOP_ERRORS,
    add_common_arguments,
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.config import load_config, replace_type
from vcmamba_mm.training.errors import SETUP_ERRORS
from vcmamba_mm.training.runner import build_runner

# What paints, by scope; MMEngine's own does not know what was predicted.
VISUALIZERS = dict(
    mmpretrain='UniversalVisualizer',
    mmseg='SegLocalVisualizer',
    mmdet='DetLocalVisualizer',
)
# Wrappers that leave a wrong label in what is saved, and ours.
BETTER_TTA = dict(
    AverageClsScoreTTA='LabelledClsScoreTTA', SegTTAModel='AverageSegScoreTTA'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    add_weights_argument(parser)
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation'
    )
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='save the predictions: a .pkl file of a classifier or detector, '
        'a folder of label maps (.png) of a segmenter',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='paint the predictions over the images and save them there',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def use_tta(cfg: Config) -> None:
    """Wrap the model and replace the pipeline, as the config says."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ValueError(
            '--tta needs tta_model and tta_pipeline in the config'
        )
    for dataset in tested_datasets(cfg):
        dataset.pipeline = cfg.tta_pipeline
    for stock, ours in BETTER_TTA.items():
        replace_type(cfg.tta_model, rf'(mm[\w.]+\.)?{stock}', ours)
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def save_predictions(cfg: Config, out: str) -> None:
    if cfg.default_scope == 'mmseg':
        add_hook(cfg, type='SaveMasksHook', out_dir=out)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {out}: must end with .pkl')
    metrics = cfg.test_evaluator
    if not isinstance(metrics, (list, tuple)):
        metrics = [metrics]
    cfg.test_evaluator = [
        *metrics,
        dict(type='DumpResults', out_file_path=out),
    ]


def paint_predictions(cfg: Config, out: str) -> None:
    cfg.visualizer = cfg.get('visualizer') or dict(type='Visualizer')
    painter = VISUALIZERS.get(cfg.get('default_scope'))
    found = replace_type(
        cfg.visualizer, r'(mmengine[\w.]*\.)?Visualizer', painter
    )
    if found and not painter:
        raise ValueError(
            '--show-dir needs a visualizer in the config, or a default_scope '
            f'of {", ".join(VISUALIZERS)}'
        )
    add_hook(cfg, type='PaintHook', out_dir=out)


def add_hook(cfg: Config, **hook: str) -> None:
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        cfg = load_config(args)
        cfg.load_from, cfg.load_weights = args.checkpoint, args.weights
        cfg.resume = False
        if args.tta:
            use_tta(cfg)
        if args.out:
            save_predictions(cfg, args.out)
        if args.show_dir:
            paint_predictions(cfg, args.show_dir)
        runner = build_runner(cfg, 'test')
    with one_line_errors(*LOOP_ERRORS):
        runner.test()


if __name__ == '__main__':
    main()
