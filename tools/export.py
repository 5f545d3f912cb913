"""Export a classifier or a segmenter: ONNX, or a program of torch.export.

The file is run and compared with PyTorch before it is kept. It takes images
(batch, channels, height, width) as float32, already normalized as the config
says, and gives logits: (batch, classes), or (batch, classes, height, width) of
a segmenter, where a binary head (out_channels=1) has one. How to get classes
from them is printed.
"""

import argparse

import torch

from vcmamba_mm.deploy.export import (
    FORMATS,
    MIN_OPSET,
    TOLERANCES,
    ExportError,
    export,
)
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import image_size, load_config
from vcmamba_mm.ops.backends import BackendError
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.errors import SETUP_ERRORS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file, or name of a model')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    add_weights_argument(parser)
    parser.add_argument(
        '--format',
        choices=list(FORMATS),
        default='onnx',
        help='onnx (default), or torch-export for torch.export.load; neither '
        'needs this package afterwards',
    )
    parser.add_argument(
        '--out',
        required=True,
        metavar='FILE',
        help='file to write, .onnx or .pt2',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='SIZE',
        help='height and width in pixels, or one number for both; by default '
        'the size the config trains with',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='take any batch size, height and width, not only one image of '
        'that size',
    )
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='take uint8 images as they are read (three channels: BGR); order '
        'of channels, mean and std of the data preprocessor become part of '
        'the graph',
    )
    parser.add_argument(
        '--fuse',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='fold batch norms and layer scales into convolutions',
    )
    parser.add_argument(
        '--opset',
        type=int,
        metavar='N',
        help=f"version of ONNX's operators, from {MIN_OPSET} on, for older "
        'runtimes; by default the one PyTorch chooses',
    )
    parser.add_argument(
        '--dtype',
        choices=[str(t).removeprefix('torch.') for t in TOLERANCES],
        default='float32',
        help='what it computes in; float16 halves the file, the scan stays '
        'float32, images and logits are the same',
    )
    args = parser.parse_args()
    if args.shape and len(args.shape) > 2:
        parser.error('--shape takes one or two numbers')
    return args


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS, BackendError, ExportError):
        cfg = load_config(args.config)
        model = get_model(cfg, args.checkpoint, 'cpu', args.weights)
        shape = args.shape or image_size(cfg)
        report = export(
            model,
            args.out,
            args.format,
            (shape[0], shape[-1]),
            dynamic=args.dynamic,
            with_preprocessing=args.with_preprocessing,
            fuse=args.fuse,
            opset=args.opset,
            dtype=getattr(torch, args.dtype),
        )
    for images, error in report.errors.items():
        print(f'{images} differs from PyTorch by {error:.1e}')
    print(f'file      {args.out}, {report.file_size / 1e6:.1f} MB')
    print(f'classes   {report.classes}')
    print(f'nodes     {report.num_nodes}')
    print(
        f'latency   {report.seconds * 1e3:.1f} ms, '
        f'PyTorch {report.torch_seconds * 1e3:.1f} ms (one image, CPU)'
    )


if __name__ == '__main__':
    main()
