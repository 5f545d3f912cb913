"""Checkpoints that hold weights and their average: which of them is taken."""

import mmengine
import pytest
import torch
from conftest import CONFIGS, GOLDEN, TINY
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from vcmamba_mm import VCMamba
from vcmamba_mm.checkpoints import CheckpointError, extract_state_dict
from vcmamba_mm.demo.__main__ import main as demo
from vcmamba_mm.inference import get_inferencer, get_model
from vcmamba_mm.training.runner import build_runner

mmpretrain = pytest.importorskip('mmpretrain')
import vcmamba_mm.classification  # noqa: E402, F401

RELEASE = GOLDEN / 'tiny_release.pth'
AVERAGE = dict(momentum=0.2, update_buffers=True)

# A hook, and what its run ranks.
HOOKS = {
    'ours': (dict(type='RawAndEMAHook', **AVERAGE), 'raw'),
    'mmengine': (dict(type='mmengine.EMAHook', **AVERAGE), 'ema'),
    'mmpretrain': (dict(type='mmpretrain.EMAHook', **AVERAGE), 'ema'),
    'mmpretrain, weights': (
        dict(
            type='mmpretrain.EMAHook',
            evaluate_on_ema=False,
            evaluate_on_origin=True,
            **AVERAGE,
        ),
        'raw',
    ),
}


@pytest.fixture
def logged(monkeypatch):
    """Lines about the choice."""
    lines = []
    monkeypatch.setattr(
        'vcmamba_mm.checkpoints.loading.print_log',
        lambda line, **_: lines.append(line),
    )
    return lines


def saved_sets(path):
    """Both sets of MMEngine's layout, by hand."""
    saved = torch.load(path, weights_only=False)
    prefix = 'module.'
    raw = {
        key.removeprefix(prefix): value
        for key, value in saved['ema_state_dict'].items()
        if key.startswith(prefix)
    }
    assert raw.keys() == saved['state_dict'].keys()
    assert not same(raw, saved['state_dict'])
    return dict(raw=raw, ema=saved['state_dict'])


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) for key in left
    )


@pytest.fixture(scope='module')
def config(pictures, tmp_path_factory):
    """A function that gives the config of a run with a hook, or without."""
    folder = tmp_path_factory.mktemp('two_sets')

    def config(name=None, **settings):
        cfg = Config.fromfile(CONFIGS / 'tiny_plain.py')
        metrics = ['accuracy/top1', 'accuracy/top1_ema']
        cfg.default_hooks.checkpoint.save_best = metrics[
            : 1 + (name == 'ours')
        ]
        cfg.custom_hooks = [HOOKS[name][0]] if name else []
        cfg.work_dir = str(folder / (name or 'none'))
        cfg.experiment_name = f'{name}_{len(list(folder.iterdir()))}'
        cfg.launcher = 'none'
        for loop in ('train', 'val', 'test'):
            cfg[f'{loop}_dataloader'].batch_size = 10
            cfg[f'{loop}_dataloader'].dataset.data_root = str(pictures)
        cfg.optim_wrapper.optimizer.lr = 0.01
        cfg.param_scheduler = []
        cfg.merge_from_dict(settings)
        return cfg

    return config


@pytest.fixture(scope='module')
def files(config):
    """The best checkpoint and the last one of a run with each hook."""
    found = {}
    for name in HOOKS:
        init_default_scope('mmpretrain')
        cfg = config(name)
        build_runner(cfg, 'train', 'val').train()
        for path in mmengine.scandir(cfg.work_dir, '.pth'):
            kind = path.removesuffix('_epoch_1.pth').removesuffix('.pth')
            found[name, kind] = f'{cfg.work_dir}/{path}'
    return found


CASES = [
    *((name, 'epoch_1', ranked) for name, (_, ranked) in HOOKS.items()),
    ('ours', 'best_accuracy_top1', 'raw'),
    ('ours', 'best_accuracy_top1_ema', 'ema'),
]


@pytest.mark.parametrize('name, kind, ranked', CASES)
def test_a_model_gets_what_its_run_ranked(
    config, files, logged, name, kind, ranked
):
    path, cfg = files[name, kind], config(name)
    sets = saved_sets(path)
    (other,) = {'raw', 'ema'} - {ranked}
    assert same(get_model(cfg, path, 'cpu').state_dict(), sets[ranked])
    (line,) = logged
    assert f"{path} holds two sets of weights: '{ranked}' is loaded" in line
    assert f"'{other}' is the other one" in line
    model = get_inferencer(cfg, path, 'cpu', other).model
    assert same(model.state_dict(), sets[other])


def test_as_mmpretrain_takes_its_own(config, files):
    for name in ('mmpretrain', 'mmengine'):
        theirs = mmpretrain.get_model(config(name), files[name, 'epoch_1'])
        ours = get_model(config(name), files[name, 'epoch_1'], 'cpu')
        assert same(ours.state_dict(), theirs.state_dict())


@pytest.fixture(scope='module')
def scores(config):
    """Scores of the test pictures with some weights, by MMEngine's runner."""
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(config())
    runner.model.eval()

    def scores(weights):
        runner.model.load_state_dict(weights)
        return torch.stack(
            [
                sample.pred_score
                for batch in runner.test_dataloader
                for sample in runner.model.test_step(batch)
            ]
        )

    return scores


@pytest.fixture
def tested(run_here, tmp_path):
    """Run the tool on a checkpoint; return the scores it saved."""

    def tested(cfg, path, *options):
        file, out = tmp_path / 'config.py', tmp_path / 'scores.pkl'
        cfg.dump(file)
        out.unlink(missing_ok=True)
        text = run_here('test.py', file, path, '--out', out, *options)
        assert out.is_file(), text
        return torch.stack([x['pred_score'] for x in mmengine.load(out)])

    return tested


@pytest.mark.parametrize('name, kind, ranked', [CASES[1], CASES[3], CASES[-1]])
def test_the_tool_tests_what_its_run_ranked(
    config, files, scores, tested, name, kind, ranked
):
    """Whether or not the config keeps an average."""
    path = files[name, kind]
    expected = {key: scores(value) for key, value in saved_sets(path).items()}
    assert not torch.allclose(expected['raw'], expected['ema'], atol=1e-4)
    (other,) = {'raw', 'ema'} - {ranked}
    torch.testing.assert_close(tested(config(name), path), expected[ranked])
    torch.testing.assert_close(tested(config(), path), expected[ranked])
    torch.testing.assert_close(
        tested(config(name), path, '--weights', other), expected[other]
    )


def test_the_average_with_augmentation(config, files, tested):
    """The hook once swapped in an average that it had not loaded."""
    path = files['mmengine', 'epoch_1']
    with_hook = tested(config('mmengine'), path, '--tta')
    torch.testing.assert_close(with_hook, tested(config(), path, '--tta'))


@pytest.mark.parametrize(
    'name, weights',
    [('ours', None), ('ours', 'ema'), ('mmengine', None), (None, 'ema')],
)
def test_training_begins_with_it(config, files, name, weights):
    init_default_scope('mmpretrain')
    path = files['ours', 'epoch_1']
    cfg = config(name, load_from=path)
    if weights:
        cfg.load_weights = weights
    runner = build_runner(cfg, 'train')
    runner.call_hook('before_run')
    runner.load_or_resume()
    expected = saved_sets(path)[weights or 'raw']
    assert same(runner.model.state_dict(), expected)
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            assert same(hook.ema_model.module.state_dict(), expected)


def test_init_cfg(files):
    path = files['mmengine', 'epoch_1']
    sets = saved_sets(path)
    cfg = Config.fromfile(CONFIGS / 'tiny_plain.py')
    for options, expected in (
        ({}, 'ema'),
        (dict(weights='ema'), 'ema'),
        (dict(weights='raw'), 'raw'),
    ):
        init_cfg = dict(type='Pretrained', checkpoint=path, **options)
        model = MODELS.build({**cfg.model.backbone, 'init_cfg': init_cfg})
        model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, sets[expected][f'backbone.{key}'])


def test_conversion_takes_it(files, run_here, tmp_path):
    path, out = files['ours', 'epoch_1'], tmp_path / 'released.pth'
    for options, expected in (([], 'raw'), (['--weights', 'ema'], 'ema')):
        run_here('convert_checkpoint.py', path, out, '--reverse', *options)
        head = torch.load(out)['model']['head.weight']
        assert torch.equal(head, saved_sets(path)[expected]['head.fc.weight'])


def test_every_tool_has_the_option(run_here, picture_file, tmp_path, capfd):
    """And says so if the file does not hold both."""
    path = tmp_path / 'one.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), path)
    config = CONFIGS / 'tiny_plain.py'
    out = tmp_path / 'out.png'
    use = ['--out', out, '--weights', 'ema']
    message = f'{path} holds one set of weights and does not say which'
    named = ['--model', config, '--checkpoint', path]
    folder = picture_file.parent
    for script, *args in (
        ('export.py', config, path, *use),
        ('convert_checkpoint.py', path, out, '--weights', 'ema'),
        ('analysis/grad_cam.py', picture_file, *named, *use),
        ('analysis/scan.py', 'decay', picture_file, *named, *use),
        ('analysis/scan.py', 'activations', picture_file, *named, *use),
        (
            'analysis/receptive_field.py',
            *(config, path, '--pictures', folder, '--size', 64, *use),
        ),
        ('analysis/mmpretrain_tools.py', 'tsne', config, path, *use),
    ):
        assert message in run_here(script, *args), script
        assert not out.exists()
    assert demo(['image', *map(str, [folder, *named, *use])]) == 2
    assert message in capfd.readouterr().err


# ------------------------------------------------- layouts that others write


def test_layouts(logged):
    raw, ema = ({'fc.weight': torch.full((1,), v)} for v in (1.0, 2.0))
    wrapped = {'module.fc.weight': raw['fc.weight'], 'steps': torch.tensor(7)}
    mmengine = dict(state_dict=ema, ema_state_dict=wrapped)
    mmcv = dict(state_dict={**ema, 'ema_fc_weight': raw['fc.weight']})
    timm = dict(state_dict=raw, state_dict_ema=ema, epoch=3)
    for checkpoint, ranked in (
        (mmengine, ema),
        (dict(mmengine, meta=dict(epoch=1)), ema),
        (dict(mmengine, meta=dict(weights='ema')), ema),
        (dict(mmengine, meta=dict(weights='raw')), raw),
        (mmcv, ema),
        (timm, raw),
        (dict(model=raw, model_ema=ema, args=None), raw),
    ):
        assert extract_state_dict(checkpoint, 'FILE') == ranked
        assert logged.pop().startswith('FILE holds two sets of weights')
        assert extract_state_dict(checkpoint, 'FILE', 'raw') == raw
        assert extract_state_dict(checkpoint, 'FILE', 'ema') == ema
        logged.clear()
    for checkpoint in (dict(state_dict=raw), dict(model=raw), raw):
        assert extract_state_dict(checkpoint, 'FILE') == raw
        assert not logged
        for weights in ('raw', 'ema'):
            with pytest.raises(CheckpointError, match='FILE holds one set'):
                extract_state_dict(checkpoint, 'FILE', weights)
    with pytest.raises(ValueError, match="got 'model_ema'"):
        extract_state_dict(timm, 'FILE', 'model_ema')


@pytest.mark.parametrize(
    'entries',
    [('model', 'model_ema'), ('state_dict', 'state_dict_ema')],
    ids=' '.join,
)
@pytest.mark.parametrize('weights', ['raw', 'ema'])
def test_the_hook_does_not_choose_again(config, tmp_path, entries, weights):
    cfg = config('ours', load_weights=weights)
    cfg.load_from = str(tmp_path / 'two.pth')
    runner = build_runner(cfg, 'train')
    state = runner.model.state_dict()
    sets = {
        name: {key: torch.full_like(value, i) for key, value in state.items()}
        for i, name in enumerate(entries)
    }
    torch.save(sets, cfg.load_from)
    runner.call_hook('before_run')
    runner.load_or_resume()
    wanted = sets[entries[weights == 'ema']]
    assert same(runner.model.state_dict(), wanted)
    (hook,) = (h for h in runner.hooks if hasattr(h, 'ema_model'))
    assert same(hook.ema_model.module.state_dict(), wanted)


def test_average_of_a_released_file():
    """In the recorded file it is the weights + 0.01."""
    init_cfg = dict(type='Pretrained', checkpoint=str(RELEASE), weights='ema')
    model = VCMamba(arch=TINY, img_size=160, init_cfg=init_cfg)
    model.init_weights()
    raw = torch.load(RELEASE, weights_only=False)['model']
    torch.testing.assert_close(
        model.stem[0].weight, raw['patch_embed.0.weight'] + 0.01
    )
