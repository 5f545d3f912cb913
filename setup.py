"""Packaging; configs and tools travel inside the package, as `.mim`."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MIM_FILES = ('configs', 'tools', 'model-index.yml')


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


class BuildPyWithMim(build_py):
    """Copy configs and tools to where `mim` and users of a wheel look."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the repository itself has them
            return
        target = Path(self.build_lib) / 'vcmamba_mm' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        for name in MIM_FILES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(
                    source,
                    target / name,
                    ignore=shutil.ignore_patterns('__pycache__'),
                )
            else:
                shutil.copy2(source, target / name)


setup(
    # Not "vcmamba-mm": mim finds the configs of an installed distribution
    # only if its name sorts after the package's folder.
    name='vcmamba-mmlab',
    version=re.search(
        r"'(.+)'", (ROOT / 'vcmamba_mm' / 'version.py').read_text()
    )[1],
    description='Vision Mamba backbones (VCMamba, VMamba, MambaVision, '
    'PlainMamba) for OpenMMLab, with nothing to compile',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author='The vcmamba_mm authors',
    keywords='computer vision, mamba, backbone, image classification, '
    'semantic segmentation, object detection, OpenMMLab',
    packages=find_packages(include=['vcmamba_mm', 'vcmamba_mm.*']),
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require={
        name: requirements(name)
        for name in (
            'onedl',
            'openmmlab',
            'openmmlab-lite',
            'cpu',
            'distill',
            'data',
            'demo',
            'analysis',
            'export',
            'docs',
            'mamba',
            'test',
        )
    },
    cmdclass=dict(build_py=BuildPyWithMim),
    zip_safe=False,
)
