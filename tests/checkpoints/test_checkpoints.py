import os
import pickle
import sys
import zipfile
from types import ModuleType

import mmengine.optim
import numpy as np
import pytest
import torch
from conftest import GOLDEN, TINY
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import init_default_scope

from vcmamba_mm import NormGlobalAveragePooling, VCMamba
from vcmamba_mm.checkpoints import (
    CheckpointError,
    extract_state_dict,
    from_released,
    read_checkpoint,
    to_released,
    write_checkpoint,
)

RELEASE = GOLDEN / 'tiny_release.pth'


def backbone(checkpoint=None, **kwargs):
    init_cfg = checkpoint and dict(
        type='Pretrained', checkpoint=str(checkpoint)
    )
    return VCMamba(
        **{**dict(arch=TINY, img_size=160, init_cfg=init_cfg), **kwargs}
    )


@pytest.fixture(scope='module')
def state_dict():
    return extract_state_dict(read_checkpoint(RELEASE), RELEASE)


class RunsCode:
    def __reduce__(self):
        return os.system, ('touch executed',)


# ------------------------------------------------------------------- renaming


@pytest.mark.parametrize('variant', ['S', 'M', 'B'])
def test_all_released_keys_there_and_back(variant, released_keys):
    classifier = pytest.importorskip('mmpretrain.registry').MODELS
    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    keys = {
        k: torch.empty(shape, device='meta')
        for k, shape in released_keys[variant].items()
    }
    ours = from_released(keys)
    dims = VCMamba.arch_settings[variant.lower()]['embed_dims'][-1]
    model = classifier.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='VCMamba', arch=variant),
            neck=dict(type='NormGlobalAveragePooling', in_channels=dims),
            head=dict(
                type='VCMambaClsHead',
                num_classes=1000,
                in_channels=dims,
                distillation=True,
            ),
        )
    )
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert list(to_released(ours)) == list(keys)


def test_unknown_keys_are_listed():
    for rename, key in (
        (from_released, 'network.6.0.attention.weight'),
        (from_released, 'cls_token'),
        (to_released, 'backbone.stages.0.blocks.1.norm3.bias'),
        (to_released, 'decode_head.conv_seg.weight'),
    ):
        with pytest.raises(CheckpointError, match=key):
            rename({key: torch.zeros(1)})


@pytest.mark.parametrize(
    'keys, words',
    [
        # timm's ViT and Swin, torchvision's ResNet, VMamba, MambaVision
        ('cls_token pos_embed patch_embed.proj.weight blocks.0.attn.qkv.bias '
         'norm.weight head.weight', 'left over: blocks.0.attn.qkv.bias'),
        ('patch_embed.proj.weight layers.0.blocks.0.norm1.weight head.weight',
         'left over: head.weight, layers.0.blocks.0.norm1.weight'),
        ('conv1.weight bn1.weight layer1.0.conv1.weight fc.weight',
         'left over: bn1.weight, conv1.weight, fc.weight'),
        ('patch_embed.0.weight layers.0.blocks.0.norm.weight '
         'classifier.head.weight', 'left over: classifier.head.weight'),
        ('patch_embed.conv_down.0.weight levels.0.blocks.0.conv1.weight '
         'norm.weight head.weight',
         'left over: stages.0.blocks.0.conv1.weight'),
        # timm's PVT
        ('patch_embed.proj.weight network.0.0.attn.q.weight head.weight',
         '1 of 3 keys are not those of a released VCMamba: '
         'network.0.0.attn.q.weight'),
    ],
)  # fmt: skip
def test_a_file_of_another_network(tmp_path, keys, words):
    path = tmp_path / 'other.pth'
    torch.save(dict(model={k: torch.zeros(2) for k in keys.split()}), path)
    backbone = VCMamba(
        arch=TINY, init_cfg=dict(type='Pretrained', checkpoint=str(path))
    )
    with pytest.raises(CheckpointError) as info:
        backbone.init_weights()
    message = str(info.value)
    assert message.startswith(f'checkpoint {path}')
    assert 'VCMamba' in message and words in message and '\n' not in message


class CfgNode(dict):
    """As yacs has it: a dict with attributes, which PyTorch would refuse."""

    def __init__(self, values):
        super().__init__(values)
        self.__dict__['__immutable__'] = True
        self.__dict__['__deprecated_keys__'] = set()


def test_the_config_of_a_run_of_vmamba(tmp_path, monkeypatch):
    """Of protocol 2, with nested nodes, under yacs's name."""
    monkeypatch.setattr(CfgNode, '__module__', 'yacs.config')
    module = ModuleType('yacs.config')
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    config = CfgNode(dict(MODEL=CfgNode(dict(DIMS=[96, 192])), LR=1e-3))
    sets = {name: dict(x=torch.rand(2)) for name in ('model', 'model_ema')}
    path = tmp_path / 'run.pth'
    torch.save(dict(sets, config=config, epoch=7, max_accuracy=1.5), path)
    monkeypatch.undo()  # without yacs
    checkpoint = read_checkpoint(path)
    assert checkpoint['config'] == dict(MODEL=dict(DIMS=[96, 192]), LR=1e-3)
    for name, weights in (('model', 'raw'), ('model_ema', 'ema')):
        found = extract_state_dict(checkpoint, path, weights)
        assert torch.equal(found['x'], sets[name]['x'])


def test_averaged_weights_of_a_released_file(state_dict):
    ema = extract_state_dict(read_checkpoint(RELEASE), RELEASE, 'ema')
    key = 'backbone.stages.3.blocks.2.mixer.A_log'
    torch.testing.assert_close(ema[key], state_dict[key] + 0.01)


# --------------------------------------------------- loading through init_cfg


def test_released_file_and_ours_and_backbone_alone(tmp_path, state_dict):
    ours, alone = tmp_path / 'ours.pth', tmp_path / 'alone.pth'
    torch.save(dict(state_dict=state_dict, meta={}), ours)
    torch.save(
        {
            k.removeprefix('backbone.'): v
            for k, v in state_dict.items()
            if k.startswith('backbone.')
        },
        alone,
    )
    for path in (RELEASE, ours, alone):
        model = backbone(path)
        model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, state_dict['backbone.' + key])
    neck = NormGlobalAveragePooling(
        64, init_cfg=dict(type='Pretrained', checkpoint=str(RELEASE))
    )
    neck.init_weights()
    assert torch.equal(neck.norm.weight, state_dict['neck.norm.weight'])


def test_inside_a_larger_model():
    mmseg = pytest.importorskip('mmseg.registry')
    init_default_scope('mmseg')
    model = mmseg.MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(
                type='VCMamba',
                arch=TINY,
                out_indices=(0, 1, 2, 3),
                init_cfg=dict(type='Pretrained', checkpoint=str(RELEASE)),
            ),
            decode_head=dict(
                type='FCNHead',
                in_channels=64,
                channels=8,
                num_classes=3,
                norm_cfg=dict(type='BN'),
            ),
        )
    )
    model.init_weights()
    recorded = read_checkpoint(RELEASE)['model']
    torch.testing.assert_close(
        model.backbone.stem[0].weight, recorded['patch_embed.0.weight']
    )
    # made for 160 x 160, the model for 224 x 224
    assert model.backbone.pos_embed.shape == (1, 64, 7, 7)
    torch.testing.assert_close(
        model.backbone.pos_embed,
        torch.nn.functional.interpolate(
            recorded['pos_embed'], (7, 7), mode='bicubic'
        ),
    )


def test_nothing_is_loaded_unless_everything_fits(tmp_path, state_dict):
    cases = {
        'missing: stages.0.blocks.0.gamma': {
            k: v
            for k, v in state_dict.items()
            if k != 'backbone.stages.0.blocks.0.gamma'
        },
        'left over: extra': {**state_dict, 'backbone.extra': torch.ones(1)},
        r'of another shape: stem.0.weight \(8, 3, 5, 5\) for \(8, 3, 3, 3\)': {
            **state_dict,
            'backbone.stem.0.weight': torch.ones(8, 3, 5, 5),
        },
        '0 of .* keys match': {'backbone.conv1.weight': torch.ones(1)},
    }
    for i, (message, tensors) in enumerate(cases.items()):
        path = tmp_path / f'{i}.pth'
        torch.save(dict(state_dict=tensors), path)
        model = backbone(path)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])


# --------------------------------------------------------------- safe reading


def test_mmengine_checkpoint_with_its_message_hub(tmp_path):
    hub = MessageHub('test_checkpoint')
    for value in (1.0, 2.0):
        hub.update_scalar('train/loss', value)
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict={},
            message_hub=hub.state_dict(),
            meta=dict(epoch=1, iter=2),
        ),
        path,
    )
    restored = read_checkpoint(path)['message_hub']
    assert restored['log_scalars']['train/loss'].mean() == 1.5


def test_mmengine_checkpoint_with_any_schedule(tmp_path):
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    settings = dict(
        OneCycleLR=dict(eta_max=0.1, total_steps=9),
        PolyLR=dict(),
        CosineAnnealingLR=dict(T_max=9),
        MultiStepLR=dict(milestones=[3]),
        LinearLR=dict(),
    )
    for name, kwargs in settings.items():
        schedule = getattr(mmengine.optim, name)(optimizer, **kwargs)
        torch.save(dict(schedule=schedule.state_dict()), tmp_path / name)
        restored = read_checkpoint(tmp_path / name)['schedule']
        assert restored.keys() == schedule.state_dict().keys()


@pytest.mark.parametrize(
    'content',
    [
        dict(model={}, args=RunsCode()),
        dict(state_dict={}, model=torch.nn.Linear(1, 1)),
    ],
)
def test_code_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'bad.pth')
    with open('bad.pkl', 'wb') as file:
        pickle.dump(content, file)
    for path in ('bad.pth', 'bad.pkl'):
        with pytest.raises(CheckpointError, match='refused.*could run code'):
            read_checkpoint(path)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(
    'call, message',
    [
        ((getattr, (HistoryBuffer, '__init__')), 'getattr'),
        ((getattr, (OneCycleParamScheduler, '__subclasses__')), 'getattr'),
        # memory at an address from the file
        ((np.ndarray, ((1,), 'O', bytes(8))), 'ndarray'),
        ((np.dtype, ('O',)), 'dtype'),
    ],
)
def test_what_is_allowed_is_harmless(tmp_path, call, message):
    class Sneaky:
        def __reduce__(self):
            return call

    torch.save(dict(state_dict={}, x=Sneaky()), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'bad.pth')


def test_arrays_of_numpy_1_and_2(tmp_path):
    values = dict(
        array=np.arange(6.0).reshape(2, 3).T,
        scalar=np.float32(0.5),
        nested=[(np.arange(3),)],
    )
    torch.save(values, tmp_path / 'here.pth')
    here = 'numpy._core' if np.__version__ >= '2' else 'numpy.core'
    for name in ('numpy._core', 'numpy.core'):
        with (
            zipfile.ZipFile(tmp_path / 'here.pth') as source,
            zipfile.ZipFile(tmp_path / 'there.pth', 'w') as target,
        ):
            for item in source.namelist():
                content = source.read(item)
                if item.endswith('data.pkl'):
                    assert here.encode() in content
                    content = content.replace(here.encode(), name.encode())
                target.writestr(item, content)
        read = read_checkpoint(tmp_path / 'there.pth')
        np.testing.assert_array_equal(read['array'], values['array'])
        assert read['scalar'] == 0.5
        np.testing.assert_array_equal(read['nested'][0][0], np.arange(3))
        torch.save(read, tmp_path / 'again.pth')


def test_reading_leaves_torch_load_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(RELEASE)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    'content',
    [
        b'<!DOCTYPE html><html></html>',
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0',
        b'{"a": 1}',
    ],
)
def test_something_else_is_not_called_code(tmp_path, content):
    (tmp_path / 'page.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match='not a PyTorch checkpoint'):
        read_checkpoint(tmp_path / 'page.pth')


@pytest.mark.parametrize('keep', [0, 10, 5000, 1_000_000])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / 'cut.pth'
    path.write_bytes(RELEASE.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match='truncated, damaged') as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_missing_file_and_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth does not exist'):
        read_checkpoint(tmp_path / 'nowhere.pth')
    with pytest.raises(CheckpointError, match='holds no weights.*epoch'):
        extract_state_dict(dict(epoch=3), 'file')
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds a list'):
        read_checkpoint(tmp_path / 'list.pth')


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / 'weights.pth'
    write_checkpoint(dict(state_dict={}), path)
    good = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint(dict(state_dict=lambda: 0), path)
    assert path.read_bytes() == good
    assert os.listdir(tmp_path) == ['weights.pth']
