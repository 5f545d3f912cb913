"""A copy of the repository in which the docs' commands are quick to follow.

The commands stay as they are written; what they find is smaller. ``SHRINK``
edits the copied files, ``write_data`` makes up what the docs suppose to be
there.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from conftest import QUICK, ROOT
from PIL import Image

COPIED = (
    'benchmarks',
    'configs',
    'docs',
    'requirements',
    'tools',
    'vcmamba_mm',
    'Makefile',
    'README.md',
    'mkdocs.yml',
    'model-index.yml',
    'pyproject.toml',
    'setup.py',
)

# Files, what is replaced in them, by what. The channels stay, so the configs
# fit; the released files' position embeddings, too.
SHRINK = (
    (
        'vcmamba_mm/models/vcmamba/backbone.py',
        r'depths=\(4, 4, 12, \d\), num_mdm=4',
        'depths=(1, 1, 1, 1), num_mdm=1',
    ),
    (
        'vcmamba_mm/models/vmamba/backbone.py',
        r'depths=\(2, 2, \d+, 2\)',
        'depths=(1, 1, 1, 1)',
    ),
    (
        'vcmamba_mm/models/mambavision/backbone.py',
        r"', (80|96), \(\d, 3, \d+, \d\)",
        r"', \1, (1, 1, 2, 2)",
    ),
    # A window of 160 x 160 takes long, whatever the picture.
    (
        'configs/**/mambavision*upernet*.py',
        r'window_size=\(\d+, \d+\)',
        'window_size=(4, 2)',
    ),
    ('vcmamba_mm/demo/data.py', r'train=\d+, val=\d+', 'train=60, val=80'),
    (
        'vcmamba_mm/demo/data.py',
        r'training=\d+, validation=\d+',
        'training=8, validation=4',
    ),
    ('vcmamba_mm/analysis/timing.py', r'rounds=\d+', 'rounds=1'),
    (
        'tools/analysis/receptive_field.py',
        r"(max-pictures', type=int, default)=\d+",
        r'\1=2',
    ),
    ('**/configs/**/*.py', r'\bbatch_size=\d+', 'batch_size=4'),
    ('**/configs/**/*.py', r'num_workers=\d+', 'num_workers=0'),
    (
        '**/configs/**/*.py',
        r'persistent_workers=True',
        'persistent_workers=False',
    ),
    ('**/configs/**/*.py', r'max_epochs( ?= ?)\d+', r'max_epochs\g<1>1'),
    ('**/configs/**/*.py', r'max_iters( ?= ?)\d+', r'max_iters\g<1>2'),
    ('configs/*/*.py', r'begin=1,(\s+)T_max=.*', r'begin=0,\1T_max=1,'),
    ('configs/*/*fpn*.py', r'(begin=|end=|max_iters - )30\b', r'\g<1>1'),
    ('**/configs/**/*.py', r'val_interval=\d+', 'val_interval=1'),
    ('**/configs/**/*.py', r"(Logger\w+', )interval=\d+", r'\1interval=1'),
    (
        '**/configs/**/*.py',
        r'logger=dict\(interval=\d+',
        'logger=dict(interval=1',
    ),
    ('**/configs/**/*.py', r'\(2048, 512\)', '(128, 64)'),
    ('**/configs/**/*.py', r'\(512, 512\)', '(64, 64)'),
    ('**/configs/**/*.py', r'\(341, 341\)', '(43, 43)'),
    ('**/configs/**/*.py', r'\bscale=(224|256)', 'scale=64'),
    ('**/configs/**/*.py', r'\bcrop_size=224', 'crop_size=64'),
    # Its weights would be downloaded, and it is large.
    ('**/configs/**/*.py', r"'regnety_160.deit_in1k'", "'regnety_002'"),
    ('**/configs/**/*.py', r'pretrained=True', 'pretrained=False'),
    # As in the commands: a run is over after one epoch or two iterations.
    ('**/configs/**/*.py', r'/epoch_\d+\.pth', '/epoch_1.pth'),
    ('Makefile', r'/epoch_\d+\.pth', '/epoch_1.pth'),
    ('Makefile', r'/iter_\d+\.pth', '/iter_2.pth'),
)

# In place of slurm: one machine that is two.
PROGRAMS = dict(
    srun="""#!/usr/bin/env bash
    while [[ $1 == --* ]]; do shift; done
    export SLURM_JOB_ID=$$ SLURM_STEP_NODELIST='node[1-2]'
    SLURM_NODEID=1 "$@" &
    SLURM_NODEID=0 "$@"
    wait -n
    """,
    scontrol="""#!/usr/bin/env bash
    printf '127.0.0.1\\nnode2\\n'
    """,
)

# Checkpoints of models with random weights: what the docs suppose to have
# been trained or downloaded. By file: the config, and whether it has the
# released names.
CHECKPOINTS = {
    'checkpoints/VCMamba-S.pth': ('vcmamba_s_distill_8xb128_in1k', True),
    'checkpoints/VCMamba-B.pth': ('vcmamba_b_distill_8xb128_in1k', True),
    'checkpoints/vssm1_tiny_0230s_ckpt_epoch_264.pth': (
        'vmamba_t_8xb128_in1k',
        True,
    ),
    'checkpoints/mambavision_tiny_1k.pth.tar': (
        'mambavision_t_32xb128_in1k',
        True,
    ),
    'checkpoints/mambavision_small_1k.pth.tar': (
        'mambavision_s_32xb128_in1k',
        True,
    ),
    'checkpoints/l1.pth': ('plainmamba_l1_8xb256_in1k', True),
    # what `make demo` trains
    'work_dirs/demo/classifier/epoch_1.pth': (
        'configs/demo/vcmamba_demo_digits.py',
        False,
    ),
    # as epoch_300.pth
    'work_dirs/vcmamba_s_8xb128_in1k/epoch_1.pth': (
        'vcmamba_s_8xb128_in1k',
        False,
    ),
    **{
        f'trained/{name}.pth': (name, False)
        for name in (
            'vcmamba_b_8xb128_in1k',
            'vcmamba_b_fpn_8xb4_40k_ade20k_512x512',
            'vmamba_t_upernet_8xb2_160k_ade20k_512x512',
        )
    },
}
WRITE_CHECKPOINTS = """
from pathlib import Path
import torch
from vcmamba_mm.checkpoints import to_released, write_checkpoint
from vcmamba_mm.demo.data import write_dataset
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import load_config
from vcmamba_mm.ops import selective_scan

# It is compiled here, and not in every copy.
x = torch.rand(1, 2, 4, requires_grad=True)
y = selective_scan(x, x, -x[0, 0, :, None], x[..., :1], x[..., :1])
y.sum().backward()
write_dataset('data/demo')
for path, (name, released) in {checkpoints}.items():
    cfg = load_config(name)
    cfg.model.backbone.pop('init_cfg', None)
    state_dict = get_model(cfg).state_dict()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(
        dict(model=to_released(state_dict))
        if released
        else dict(state_dict=state_dict, meta={{}}),
        path,
    )
"""


def make_sandbox(root: Path) -> None:
    """Copy the repository to ``root``, shrink it, and add what is supposed.

    Raises:
        ValueError: If an entry of ``SHRINK`` matches nothing.
    """
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, root / name)
    mmseg = Path(find_spec('mmseg').origin).parent / '.mim/configs'
    for name in ('_base_', 'sem_fpn'):
        shutil.copytree(mmseg / name, root / 'mmsegmentation/configs' / name)
    for pattern, old, new in SHRINK:
        replaced = 0
        for path in root.glob(pattern):
            text, n = re.subn(old, new, path.read_text(), flags=re.M)
            path.write_text(text)
            replaced += n
        if not replaced:
            raise ValueError(f'{old} is nowhere in {pattern}: mend SHRINK')
    write_data(root)
    # For `make`: an environment that is installed.
    (root / '.venv').mkdir()
    (root / '.venv/installed').touch()
    (root / 'bin').mkdir()
    for name, text in PROGRAMS.items():
        (root / 'bin' / name).write_text(text)
        (root / 'bin' / name).chmod(0o755)
    subprocess.run(
        [
            sys.executable,
            '-c',
            WRITE_CHECKPOINTS.format(checkpoints=CHECKPOINTS),
        ],
        cwd=root,
        env=environment(root),
        check=True,
    )


def environment(root: Path) -> dict[str, str]:
    """Environment variables for commands in the sandbox."""
    paths = root / 'bin', Path(sys.executable).parent, os.environ['PATH']
    return {
        **os.environ,
        'PYTHONPATH': f'{root}:{QUICK}',
        'PATH': ':'.join(map(str, paths)),
        'CUDA_VISIBLE_DEVICES': '',
        'TRITON_INTERPRET': '0',  # conftest.py sets it
        'OMP_NUM_THREADS': '1',
        'OMP_WAIT_POLICY': 'PASSIVE',
        'MPLBACKEND': 'Agg',
    }


def write_data(root: Path) -> None:
    rng = np.random.default_rng(0)

    def picture(path: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / path)

    def mask(path: str, values: int) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, values, (80, 100), dtype=np.uint8)
        Image.fromarray(pixels).save(root / path)

    for path in ('cat.jpg', 'dog.jpg', 'photos/1.jpg', 'photos/trip/2.png'):
        picture(path)
    for split, number in dict(train=12, val=32).items():
        lines = []
        for i in range(number):
            name = f'n0144{i % 3}/{i}.JPEG'
            picture(f'data/imagenet/{split}/{name}')
            lines.append(f'{name} {i % 3}')
        meta = root / f'data/imagenet/meta/{split}.txt'
        meta.parent.mkdir(exist_ok=True)
        meta.write_text('\n'.join(lines))
    for split in ('train', 'val'):
        for i in range(10):
            picture(f'data/my_images/{split}/class_{i}/{i}.jpg')
    for split in ('train', 'test'):
        for i in range(10):
            picture(f'data/cifar10_small/{split}/class_{i}/{i}.jpg')
    for folder, values, splits in (
        ('ade/ADEChallengeData2016', 151, ('training', 'validation')),
        ('my_masks', 2, ('train', 'val')),
        ('camvid_small', 12, ('train', 'val')),
    ):
        for split in splits:
            for i in range(4):
                picture(f'data/{folder}/images/{split}/{i}.jpg')
                mask(f'data/{folder}/annotations/{split}/{i}.png', values)
    for split in ('train', 'val'):
        for i in range(2):
            city = f'data/cityscapes/{{}}/{split}/aachen/{i}_{{}}.png'
            picture(city.format('leftImg8bit', 'leftImg8bit'))
            mask(city.format('gtFine', 'gtFine_labelTrainIds'), 19)
            picture(f'data/flowers/images/{split}_{i}.jpg')
        table = ''.join(f'{split}_{i}.jpg,{i}\n' for i in range(2))
        (root / f'data/flowers/{split}.csv').write_text(table)
    (root / 'data/webdataset').mkdir()
    with tarfile.open(root / 'data/webdataset/shard-0.tar', 'w') as shard:
        for i in range(4):
            for name, content in {
                f'{i}.jpg': (root / 'cat.jpg').read_bytes(),
                f'{i}.cls': str(i).encode(),
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, BytesIO(content))
