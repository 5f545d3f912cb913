"""What is installed here, and what of it works: to paste into an issue.

python -m vcmamba_mm.doctor
"""

import os
import sys
from importlib import import_module
from importlib.metadata import packages_distributions, version

import torch
from mmengine.utils.dl_utils import collect_env

from .ops import available_backends, path_scan
from .ops.backends import VARIABLE, BackendError, auto_backend
from .ops.scan_inputs import Options, Tensors
from .ops.self_check import CASES, check, check_triton, differentiate
from .version import __version__

STACK = ('mmengine', 'mmcv', 'mmpretrain', 'mmseg')
# What each is needed for
PARTS = {
    'mmpretrain.models': 'classification',
    'mmseg.models': 'segmentation',
    'mmcv.ops': 'detection',
}
OPTIONAL = (
    'torchvision',
    'numpy',
    'triton',
    'mamba_ssm',
    'timm',
    'simplejpeg',
    'lmdb',
)


def distributions() -> dict[str, str]:
    """Which distribution, in which version, provides each package."""
    providers = packages_distributions()
    return {
        package: ', '.join(
            f'{name} {version(name)}'
            for name in sorted(set(providers.get(package, [])))
        )
        for package in STACK + OPTIONAL
    }


def check_part(module: str) -> str:
    """Import it; if it fails, say why, what that costs, and the mend."""
    try:
        import_module(module)
    except (ImportError, AssertionError) as error:  # mmseg asserts versions
        verdict = f'cannot be imported ({error}), no {PARTS[module]} here'
        if 'mmcv._ext' in str(error):
            verdict += (
                ': mmcv has no compiled operators. What else is listed works '
                'without; the mend is in docs/index.md, "Install"'
            )
        return verdict
    if module == 'mmcv.ops' and sys.modules['mmcv._ext'].__file__.endswith(
        '.py'
    ):
        return f'a stand-in without operators, no {PARTS[module]} here'
    return 'can be imported'


def check_backend(name: str, device: str) -> str:
    """Compare its scans with those of ``torch`` in float64."""

    def scan(tensors: Tensors, options: Options) -> torch.Tensor:
        return path_scan(
            *tensors[:6],
            **options._asdict(),
            direction_B=tensors.direction_B,
            delta_bias=tensors.delta_bias,
            backend=name,
        )

    if device == 'cpu':  # where Triton's interpreter needs a while
        short = [c for c in CASES if c.options.height * c.options.width < 40]
        agrees, reason = check(differentiate(scan), device, short)
    elif name == 'triton':  # what 'auto' asks
        agrees, reason = check_triton(torch.device(device), fresh=True)
    else:
        agrees, reason = check(differentiate(scan), device)
    return f'{"works" if agrees else "FAILS"} on {device}, {reason}'


def meaning_of_auto(device: str) -> str:
    try:
        return auto_backend(torch.device(device))
    except (ValueError, BackendError) as error:
        return str(error)


def main() -> None:
    provided = distributions()
    print(f'vcmamba_mm: {__version__}')
    for package, distribution in provided.items():
        print(f'{package}: {distribution or "not installed"}')
    stack = filter(None, map(provided.get, STACK))
    if len({'onedl' in distribution for distribution in stack}) > 1:
        print("WARNING: onedl's and OpenMMLab's packages are mixed: use one")
    for part in PARTS:
        if provided.get(part.partition('.')[0]):
            print(f'{part}: {check_part(part)}')
    gpus = [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    for name, reason in available_backends().items():
        where = gpus[0] if gpus and name != 'numba' else 'cpu'
        print(f'scan backend {name}: {reason or check_backend(name, where)}')
    if VARIABLE in os.environ:
        print(f'{VARIABLE}: {os.environ[VARIABLE]}')
    for device in ('cpu', *gpus):
        print(f"scan backend 'auto' on {device}: {meaning_of_auto(device)}")
    for key, value in collect_env().items():
        print(f'{key}: {value}')


if __name__ == '__main__':
    main()
