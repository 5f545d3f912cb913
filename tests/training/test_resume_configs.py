"""The recipes as they are, tiny, interrupted in the middle of an epoch."""

import gc
import itertools
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image
from toy_runs import Killed, differences  # and its DieHook

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.data.sampling import SeededFetch

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

names = itertools.count()
DIMS = '[8,16,16,32]'
ALL = (
    'model.backbone.arch._delete_=True',
    'train_dataloader.num_workers=2',
    'train_dataloader.batch_size=4',
    'default_hooks.checkpoint.by_epoch=False',
)
STAGES = (
    f'model.backbone.arch.embed_dims={DIMS}',
    'model.backbone.arch.depths=(1,1,1,2)',
    'model.neck.in_channels=32',  # SEGMENTER sets its own
)
ARCHS = dict(
    vcmamba=(
        *STAGES,
        'model.backbone.arch.num_mdm=1',
        'model.backbone.img_size=64',
    ),
    vmamba=(*STAGES, 'model.backbone.arch.expand=1'),
    mambavision=(
        *STAGES,
        'model.backbone.arch.stem_dims=8',
        'model.backbone.arch.num_heads=[2,2]',
        'model.backbone.arch.layer_scale=0.5',
        'custom_hooks.2.begin=1',  # MESA, in the epoch that is interrupted
    ),
    plainmamba=(
        'model.backbone.arch.embed_dims=32',
        'model.backbone.arch.depth=2',
        'model.backbone.arch.stem_convs=1',
        'model.backbone.arch.extra_conv=True',
    ),
)
CLASSIFIER = (
    'model.head.in_channels=32',
    'train_dataloader.dataset.pipeline.1.transform.scale=64',
    'train_cfg.max_epochs=2',
)
SEGMENTER = (
    'model.backbone.init_cfg=None',
    f'model.neck.in_channels={DIMS}',
    'model.neck.out_channels=16',
    'model.decode_head.in_channels=[16,16,16,16]',
    'model.decode_head.channels=16',
    'model.data_preprocessor.size=(64,64)',
    'train_dataloader.dataset.pipeline.2.scale=(160,96)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    'train_cfg.max_iters=8',
)


@pytest.fixture(scope='module')
def scenes(pictures, tmp_path_factory):
    """The pictures with masks, in the layouts of ADE20K and of one's own."""
    root = tmp_path_factory.mktemp('scenes')
    rng = np.random.default_rng(0)
    for name in ('training', 'train'):
        for kind in ('images', 'annotations'):
            (root / kind / name).mkdir(parents=True)
        for path in (pictures / 'train').rglob('*.jpg'):
            shutil.copy(path, root / 'images' / name / path.name)
            mask = rng.integers(0, 2, (40, 48), dtype=np.uint8)
            mask = Image.fromarray(mask)
            mask.save(root / 'annotations' / name / f'{path.stem}.png')
    return root


@pytest.fixture
def train(run_here, monkeypatch, tmp_path):
    """Train; return which samples of all the epochs were read."""
    fetch = SeededFetch.__call__

    def train(config, work_dir, *args, error=None):
        log = tmp_path / f'read_{next(names)}'

        def noting(self, indices):
            with open(log, 'a') as file:  # the workers' too
                for _, epoch, place in (index.seed for index in indices):
                    file.write(f'{20 * epoch + place}\n')
            return fetch(self, indices)

        monkeypatch.setattr(SeededFetch, '__call__', noting)
        with pytest.raises(error) if error else nullcontext():
            output = run_here(
                'train.py',
                f'configs/{config}.py',
                '--no-validate',
                '--work-dir',
                work_dir,
                *args,
            )
            assert not output.startswith('error: '), output
        gc.collect()
        return [int(line) for line in log.read_text().split()]

    return train


@pytest.mark.parametrize(
    'config, options, iterations, killed_at',
    [
        # epochs of 5 iterations, 20 pictures
        ('vcmamba_s_8xb128_in1k', CLASSIFIER, 10, 7),
        ('vcmamba_b_deviceaug_8xb128_in1k', CLASSIFIER, 10, 7),
        ('vmamba/vmamba_t_8xb128_in1k', CLASSIFIER, 10, 7),
        ('mambavision/mambavision_t_32xb128_in1k', CLASSIFIER, 10, 7),
        ('plainmamba/plainmamba_l2_8xb256_in1k', CLASSIFIER, 10, 7),
        ('vcmamba_s_fpn_8xb4_40k_ade20k_512x512', SEGMENTER, 8, 3),
        ('vcmamba_s_fpn_finetune_b8_4k_masks', SEGMENTER, 8, 3),
    ],
    ids=[
        *('imagenet', 'imagenet_device', 'vmamba', 'mambavision'),
        *('plainmamba', 'ade20k', 'masks'),
    ],
)
def test_goes_on_with_the_next_batch(
    train, pictures, scenes, tmp_path, config, options, iterations, killed_at
):
    """Bit-identical at the end, and what was seen is not read again."""
    root = pictures if options is CLASSIFIER else scenes
    options = [
        '--cfg-options',
        *ALL,
        *ARCHS[config.split('/')[-1].split('_')[0]],
        *options,
        f'train_dataloader.dataset.data_root={root}',
        f'default_hooks.checkpoint.interval={killed_at}',
    ]
    seed = 'randomness.seed=3'
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    read = train(config, whole, *options, seed)
    die = [
        'default_hooks.die.type=DieHook',
        f'default_hooks.die.at={killed_at - 1}',
    ]
    train(config, parts, *options, seed, *die, error=Killed)
    assert not (parts / f'iter_{killed_at + 1}.pth').exists()
    rest = train(config, parts, '--resume', *options)
    # Workers may have read ahead at the end.
    begin, end = 4 * killed_at, 4 * iterations
    assert sorted(read)[:end] == list(range(end))
    assert sorted(rest)[: end - begin] == list(range(begin, end))
    ends = [
        read_checkpoint(folder / f'iter_{iterations}.pth')
        for folder in (whole, parts)
    ]
    for content in ends:
        del content['meta'], content['message_hub']
    assert not list(differences(*ends))
