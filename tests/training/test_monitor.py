"""What a run logs, on a model whose numbers are known in closed form."""

import json

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.training.hooks import CheckFiniteHook
from vcmamba_mm.training.monitor import RawAndEMAHook, ThroughputHook
from vcmamba_mm.training.runner import SafeRunner

LR, MOMENTUM, BATCH, STEPS = 0.1, 0.25, 4, 6
CLIP = dict(clip_grad=dict(max_norm=1.0))


@MODELS.register_module()
class Line(BaseModel):
    """Its loss has the gradient (3, 4) everywhere, so its norm is 5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.conv = nn.Conv2d(3, 5, 1, bias=False).requires_grad_(False)

    def forward(self, inputs, mode='tensor'):
        if mode == 'loss':
            return dict(loss=self.weight @ torch.tensor([3.0, 4.0]))
        if mode == 'predict':
            return [self.weight[0].item()] * len(inputs)
        return self.conv(inputs)


class Value(BaseMetric):
    """The first weight, as the model says it."""

    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return dict(value=sum(results) / len(results))


def loader(num_batches):
    pictures = [dict(inputs=torch.zeros(3, 7, 9))] * (BATCH * num_batches)
    return dict(
        dataset=pictures,
        batch_size=BATCH,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def train(work_dir, runner=SafeRunner, **kwargs) -> Runner:
    init_default_scope('mmengine')
    torch.manual_seed(0)
    runner = runner(
        **{
            **dict(
                model=Line(),
                cfg=dict(model=dict(type='Line')),
                work_dir=str(work_dir),
                experiment_name=work_dir.name,
                train_dataloader=loader(STEPS // 2),
                val_dataloader=loader(1),
                val_evaluator=[Value()],
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=LR)),
                train_cfg=dict(by_epoch=True, max_epochs=2),
                val_cfg={},
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=1),
                    checkpoint=dict(
                        type='CheckpointHook',
                        interval=1,
                        save_best='value',
                        rule='greater',
                    ),
                ),
                custom_hooks=[
                    CheckFiniteHook(),
                    ThroughputHook(peak_tflops=1e-6),
                    RawAndEMAHook(momentum=MOMENTUM),
                ],
                visualizer=dict(
                    type='Visualizer',
                    vis_backends=[
                        dict(type='LocalVisBackend'),
                        dict(type='TensorboardVisBackend'),
                    ],
                ),
            ),
            **kwargs,
        }
    )
    runner.train()
    return runner


def scalars(work_dir):
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    pytest.importorskip('tensorboard')
    work_dir = tmp_path_factory.mktemp('monitor')
    return train(work_dir), work_dir, scalars(work_dir)


def expected_weights():
    """The first weight and its average after each step."""
    weights = [-3 * LR * step for step in range(1, STEPS + 1)]
    averages = weights[:1]  # the average begins with the first weights
    for weight in weights[1:]:
        averages.append(averages[-1] + MOMENTUM * (weight - averages[-1]))
    return weights, averages


def test_weights_and_average_are_validated(trained):
    runner, work_dir, lines = trained
    weights, averages = expected_weights()
    validations = [line for line in lines if 'value' in line]
    half = STEPS // 2
    for line, i in zip(validations, (half - 1, STEPS - 1), strict=True):
        assert line['value'] == pytest.approx(weights[i])
        assert line['value_ema'] == pytest.approx(averages[i])
    assert runner.model.weight[0].item() == pytest.approx(weights[-1])
    # ranked by the weights, which fall
    assert (work_dir / 'best_value_epoch_1.pth').is_file()


def test_average_goes_on_after_resume(trained, tmp_path):
    _, work_dir, _ = trained
    train(
        tmp_path / 'resumed',
        load_from=str(work_dir / 'epoch_1.pth'),
        resume=True,
    )
    *_, first = [line for line in scalars(work_dir) if 'value' in line]
    (second,) = [
        line for line in scalars(tmp_path / 'resumed') if 'value' in line
    ]
    for key in ('value', 'value_ema'):
        assert second[key] == first[key]
    ends = [
        read_checkpoint(folder / 'epoch_2.pth')
        for folder in (work_dir, tmp_path / 'resumed')
    ]
    for part in ('state_dict', 'ema_state_dict'):
        for key, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][key])


def test_resumed_without_the_hook_goes_on_from_the_weights(trained, tmp_path):
    _, work_dir, _ = trained
    runner = train(
        tmp_path / 'hookless',
        load_from=str(work_dir / 'epoch_1.pth'),
        resume=True,
        custom_hooks=[],
    )
    weights, _ = expected_weights()
    assert runner.model.weight[0].item() == pytest.approx(weights[-1])


@pytest.mark.parametrize('runner', [SafeRunner, Runner])
def test_load_from_takes_the_weights(trained, tmp_path, runner):
    _, work_dir, _ = trained
    tuned = tmp_path / runner.__name__
    train(
        tuned,
        runner,
        load_from=str(work_dir / 'epoch_2.pth'),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    (line,) = [line for line in scalars(tuned) if 'value' in line]
    weights, _ = expected_weights()
    assert line['value'] == pytest.approx(weights[-1])
    assert line['value_ema'] == pytest.approx(weights[-1])


def test_checkpoints_say_which_set_was_ranked(tmp_path):
    """The weights fall, so their average is above them and falls, too."""
    for name, metrics in (
        ('one', 'value_ema'),
        ('two', ['value_ema', 'value']),
        ('auto', 'auto'),
    ):
        work_dir = tmp_path / name
        hook = dict(type='AtomicCheckpointHook', interval=1)
        hook.update(save_best=metrics, rule='less')
        train(work_dir, default_hooks=dict(checkpoint=hook))
        ranked = {
            path.stem: read_checkpoint(path)['meta']['weights']
            for path in work_dir.glob('*.pth')
        }
        expected = dict(
            epoch_1='raw',
            epoch_2='raw',
            best_value_ema_epoch_2='ema',
            best_value_epoch_2='raw',
        )
        if name == 'one':  # nothing else is ranked
            del expected['best_value_epoch_2']
            expected.update(epoch_1='ema', epoch_2='ema')
        if name == 'auto':
            del expected['best_value_ema_epoch_2']
        assert ranked == expected


def test_resumed_run_says_it_too(tmp_path):
    """What the run before noted as the best is not taken for new."""
    hook = dict(type='AtomicCheckpointHook', save_best='value_ema')
    hook.update(rule='greater', max_keep_ckpts=1)  # the first one stays best
    hooks = dict(checkpoint=hook)
    one = dict(by_epoch=True, max_epochs=1)
    train(tmp_path / 'first', default_hooks=hooks, train_cfg=one)
    train(
        tmp_path / 'first',
        default_hooks=hooks,
        load_from=str(tmp_path / 'first/epoch_1.pth'),
        resume=True,
    )
    ranked = {
        path.stem: read_checkpoint(path)['meta']['weights']
        for path in (tmp_path / 'first').glob('*.pth')
    }
    assert ranked == dict(epoch_2='ema', best_value_ema_epoch_1='ema')


def test_what_is_published_is_what_was_ranked(tmp_path):
    """MMEngine's hook would publish the average alone."""
    hook = dict(type='AtomicCheckpointHook', rule='less')
    hook.update(save_best=['value', 'value_ema'])
    hook.update(published_keys=['state_dict', 'meta'])
    train(tmp_path / 'run', default_hooks=dict(checkpoint=hook))
    weights, averages = expected_weights()
    for name, expected in (
        ('epoch_2-*.pth', weights[-1]),
        ('best_value_ema_epoch_2-*.pth', averages[-1]),
    ):
        (path,) = (tmp_path / 'run').glob(name)
        published = torch.load(path, weights_only=False)
        assert published.keys() == {'state_dict', 'meta'}
        weight = published['state_dict']['weight'][0].item()
        assert weight == pytest.approx(expected)


def test_validation_without_metrics(trained):
    """As MMEngine's hooks allow."""
    runner = trained[0]
    (hook,) = (h for h in runner.hooks if isinstance(h, RawAndEMAHook))
    runner.message_hub.get_scalar('val/value_ema').update(0, 1)
    hook.after_val_epoch(runner)
    _, averages = expected_weights()
    assert runner.message_hub.get_scalar(
        'val/value_ema'
    ).current() == pytest.approx(averages[-1])


def test_grad_norm_and_throughput(trained):
    lines = [line for line in trained[2] if 'loss' in line]
    assert len(lines) == STEPS
    for line in lines:
        assert line['grad_norm'] == 5
        assert {'lr', 'time', 'data_time'} <= set(line)
        speed = line['images_per_second']
        assert speed == pytest.approx(BATCH / line['time'])
        # forward and backward of a 1 x 1 convolution on 7 x 9 pixels
        flops = 6 * 3 * 5 * 7 * 9
        assert line['tflops'] == pytest.approx(speed * flops / 1e12)
        assert line['mfu'] == pytest.approx(100 * line['tflops'] / 1e-6)


def test_grad_norm_of_a_wrapper_that_clips(tmp_path):
    train(
        tmp_path / 'clipped',
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=LR), **CLIP),
    )
    lines = [line for line in scalars(tmp_path / 'clipped') if 'loss' in line]
    assert [line['grad_norm'] for line in lines] == [5] * STEPS


class Waits(TorchDispatchMode):
    """Counts how often a number is brought to Python: a GPU's would end
    what it does first.
    """

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('clip_grad, waits', [({}, STEPS), (CLIP, 0)])
def test_norm_and_check_wait_for_the_gradients_once(
    tmp_path, clip_grad, waits
):
    """Not at all where MMEngine has done so to clip them."""
    counts = []
    for hooks in ([], [CheckFiniteHook()]):
        with Waits() as seen:
            train(
                tmp_path / f'{waits}_waits_{len(hooks)}',
                optim_wrapper=dict(
                    optimizer=dict(type='SGD', lr=LR), **clip_grad
                ),
                default_hooks=dict(checkpoint=None),
                custom_hooks=hooks,
            )
        counts.append(seen.count)
    assert counts[0] >= STEPS  # for the loss
    assert counts[1] - counts[0] == waits


def test_wrong_peak():
    with pytest.raises(ValueError, match='peak_tflops must be positive'):
        ThroughputHook(peak_tflops=0)


def test_tensorboard_has_all_that_the_log_has(trained):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    _, work_dir, lines = trained
    (folder,) = work_dir.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    expected = {}
    for line in lines:
        for key, value in line.items():
            if key != 'step':
                expected.setdefault(key, []).append((line['step'], value))
    assert set(events.Tags()['scalars']) == set(expected)
    for key, pairs in expected.items():
        found = sorted((e.step, e.value) for e in events.Scalars(key))
        for (step, value), pair in zip(found, sorted(pairs), strict=True):
            assert step == pair[0]
            assert value == pytest.approx(pair[1], rel=1e-6)
