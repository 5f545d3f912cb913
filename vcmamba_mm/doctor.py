"""What is installed here, and what of it works: to paste into an issue.

python -m vcmamba_mm.doctor
"""

import sys
from importlib import import_module
from importlib.metadata import packages_distributions, version

import torch
from mmengine.utils.dl_utils import collect_env

from .ops import available_backends, multi_directional_scan
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
    """Run a small scan and compare it with the specification in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    inputs = (
        random(1, 12, 8),
        random(1, 12, 8),
        -random(8, 4),
        random(1, 12, 4),
        random(1, 12, 4),
        random(8),
        random(5, 4),
    )
    expected = multi_directional_scan(
        *(t.double() for t in inputs), 3, 4, backend='reference'
    )
    try:
        y = multi_directional_scan(
            *(t.to(device) for t in inputs), 3, 4, backend=name
        )
    except RuntimeError as failure:
        return f'fails on {device}: {failure}'
    error = float((y.cpu().double() - expected).abs().max())
    verdict = 'works' if error < 1e-4 else 'WRONG RESULT'
    return f'{verdict} on {device}, largest error {error:.1e}'


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
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for name, reason in available_backends().items():
        where = 'cpu' if name == 'numba' else device
        print(f'scan backend {name}: {reason or check_backend(name, where)}')
    for key, value in collect_env().items():
        print(f'{key}: {value}')


if __name__ == '__main__':
    main()
