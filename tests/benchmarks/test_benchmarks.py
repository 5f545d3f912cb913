"""The benchmarks, in a tiny configuration: they run and they check."""

import json
import math
from pathlib import Path

import backbones
import measure
import model
import pytest
import released_like
import scan
import torch
from conftest import needs_export, randomize_norms, smallest_classifier_cfg
from measure import Goal, WrongResultError
from mmengine.config import Config

from vcmamba_mm.analysis.timing import BUFFERS, FULL, Timing, time_side_by_side
from vcmamba_mm.deploy.export import ExportError
from vcmamba_mm.inference import get_model
from vcmamba_mm.ops import available_backends
from vcmamba_mm.ops.scan_inputs import Tensors


def run(benchmark, folder, *options):
    benchmark.main(
        ['--quick', '--device', 'cpu', '--out', str(folder), *options]
    )


def read_report(folder, name, plotted=True):
    """The JSON's content, after a look at the other files."""
    text = (folder / f'{name}_cpu.md').read_text(encoding='utf-8')
    assert 'A quick run' in text and '| threads | 1 |' in text
    picture = folder / f'{name}_cpu.png'
    assert picture.exists() == (f'![Plot]({picture.name})' in text) == plotted
    if plotted:
        png = picture.read_bytes()
        assert png.startswith(b'\x89PNG') and len(png) > 10_000
    result = json.loads((folder / f'{name}_cpu.json').read_text())
    assert result['benchmark'] == name and result['device'] == 'cpu'
    assert result['environment']['torch'] == torch.__version__
    for row in result['results']:
        contestant = row.get('contestant') or row['model']
        assert any(f'| {contestant} |' in line for line in text.splitlines())
    return result


def check_timing(timing):
    low, median, high = timing['quartiles_ms']
    assert 0 < low <= median <= high < math.inf
    assert [len(e) for e in timing['entries_ms']] == [2, 2]
    assert all(ms > 0 for entry in timing['entries_ms'] for ms in entry)
    assert timing['warm_ups'] >= 1 and timing['calls_per_sample'] >= 1


def test_scan_benchmark(tmp_path):
    run(scan, tmp_path)
    rows = read_report(tmp_path, 'scan')['results']
    contestants = {'selective_scan_ref', 'torch'}
    if available_backends()['numba'] is None:
        contestants.add('numba')
    assert {row['contestant'] for row in rows} == contestants
    assert len(rows) == len(contestants) * len(scan.QUICK_CASES)
    for row in rows:
        assert 0 < row['error'] < 1e-5 and row['peak_bytes'] > 1000
        assert set(row['passes']) == {'forward', 'forward + backward'}
        for timing in row['passes'].values():
            check_timing(timing)


def test_model_benchmark(tmp_path):
    run(model, tmp_path)
    rows = read_report(tmp_path, 'model')['results']
    assert {row['task'] for row in rows} == set(model.TASKS)
    ours = {row['variant'] for row in rows if row['model'] == 'VCMamba-S'}
    assert ours == {'', 'channels_last', 'fused', 'released-like'}
    ours = {row['variant'] for row in rows if row['model'] == 'VMamba-T'}
    assert ours == {'', 'released-like', 'without its scans'}
    for name in ('MambaVision-T', 'PlainMamba-L1'):
        ours = {row['variant'] for row in rows if row['model'] == name}
        assert ours == {'', 'without its scans'}
    for row in rows:
        assert 0 < row['error'] < backbones.TOLERANCE
        assert row['params'] > 7e6
        check_timing(row)


@pytest.fixture
def export(monkeypatch):
    """The benchmark, of the smallest model."""
    for name in ('onnx', 'onnxruntime', 'mmpretrain'):
        pytest.importorskip(name)
    import export

    import vcmamba_mm.classification  # noqa: F401 - registers the head

    def build(name, size):
        cfg = dict(model=smallest_classifier_cfg(), default_scope='mmpretrain')
        model = get_model(Config(cfg), device='cpu')
        return randomize_norms(model)

    monkeypatch.setattr(export, 'build', build)
    return export


@needs_export
def test_export_benchmark(export, tmp_path):
    run(export, tmp_path)
    result = read_report(tmp_path, 'export', plotted=False)
    rows = result['results']
    assert {row['model'] for row in rows} == {
        Path(name).stem for name in export.QUICK_MODELS
    }
    for row, goal in zip(rows, result['goals']):
        assert row['differences'][0]['shape'] == [1, 3, 64, 64]
        assert len(row['differences']) == 4
        differences = [its['difference'] for its in row['differences']]
        assert 0 < min(differences) <= max(differences) < 1e-5
        assert goal['verdict'] == 'reached'
        assert goal['measured'] == pytest.approx(1e6 * max(differences))
        assert row['scan_nodes'] == 1 < row['nodes']
        assert row['file_bytes'] > 1e4
        assert row['onnxruntime_ms'] > 0 < row['torch_ms']


@needs_export
def test_runtimes_benchmark(tmp_path):
    for name in ('onnx', 'onnxruntime', 'mmpretrain', 'sklearn'):
        pytest.importorskip(name)
    import runtimes

    run(runtimes, tmp_path)
    rows = read_report(tmp_path, 'runtimes', plotted=False)['results']
    rows = {row['contestant']: row for row in rows}
    for row in rows.values():
        check_timing(row)
        assert row['mean_difference'] <= row['largest_difference'] < 0.5
    float32 = rows['ONNX Runtime, float32']
    float16 = rows['ONNX Runtime, float16']
    int8 = rows['ONNX Runtime, int8 static']
    # By the bits of their mantissas
    assert 0 < float32['largest_difference'] < 1e-5
    assert 1e-5 < float16['largest_difference'] < 1e-2
    assert float16['largest_difference'] < int8['largest_difference']
    assert int8['file_bytes'] < float16['file_bytes'] < float32['file_bytes']


@needs_export
def test_wrong_export_stops_the_benchmark(export, tmp_path, monkeypatch):
    def differs(*args, **kwargs):  # see tests/deploy/test_export.py
        raise ExportError('it differs')

    monkeypatch.setattr(export, 'export', differs)
    with pytest.raises(ExportError, match='it differs'):
        run(export, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'device, plan', [('cpu', model.cpu_plan()), ('cuda', model.gpu_plan())]
)
def test_whole_plan_can_be_drawn(device, plan):
    timing = Timing(([1.0], [1.0]), 1, 10)
    results = {
        case: {contestant: dict(timing=timing) for contestant in contestants}
        for case, contestants in plan.items()
    }
    figure = model.plot(device, results)
    drawn = {
        (axis.get_title(), line.get_color(), line.get_marker())
        for axis in figure.axes
        for line in axis.get_lines()
    }
    tasks = {case.task for case in plan if case.size != 224}
    assert len(drawn) == len(
        {
            (case.task, contestant)
            for case, contestants in plan.items()
            for contestant in contestants
            if case.task in tasks
            and case.batch == model.series_batch(device, case.size)
        }
    )


RIGHT = scan.by_backend('torch')


def scan_in_one_row(tensors, options):
    tokens = options.height * options.width
    return RIGHT(tensors, options._replace(height=1, width=tokens))


def wrong_gradient(tensors, options):
    B = tensors.B
    return RIGHT(tensors, options) + (B - B.detach()).sum()


@pytest.mark.parametrize(
    'broken, named',
    [(scan_in_one_row, 'y of broken'), (wrong_gradient, 'B of broken')],
)
def test_wrong_scan_stops_the_benchmark(broken, named, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, 'QUICK_CASES', [scan.Case(1, 2, 3, 8, 4)])
    monkeypatch.setattr(
        scan,
        'contestants',
        lambda device: dict(selective_scan_ref=RIGHT, broken=broken),
    )
    with pytest.raises(WrongResultError, match=f'{named}.*is wrong'):
        run(scan, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'left_out, named',
    [
        ('direction_B', 'VCMamba-S, released-like is wrong'),
        ('delta_bias', 'VMamba-T, released-like is wrong'),
    ],
)
def test_wrong_model_stops_the_benchmark(
    tmp_path, monkeypatch, left_out, named
):
    def wrong(selective_scan, tensors, options):
        tensors = tensors._replace(**{left_out: None})
        return released_like.path_by_path(selective_scan, tensors, options)

    monkeypatch.setattr(backbones, 'path_by_path', wrong)
    with pytest.raises(WrongResultError, match=named):
        run(model, tmp_path, '--models', named.partition(',')[0])
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_wrong():
    with pytest.raises(WrongResultError, match='error nan'):
        measure.check('it', torch.tensor(math.nan), torch.ones(()).double(), 1)


@pytest.mark.parametrize('family', scan.FAMILIES)
@pytest.mark.parametrize('size', [(1, 1), (3, 4), (5, 2)])
def test_baseline_is_the_scan(size, family):
    case = scan.Case(2, *size, 6, 3, family)
    inputs = scan.random_inputs(case, 'cpu')[:-1]
    inputs = [t.double().requires_grad_() for t in inputs]
    tensors = Tensors(*inputs)
    y = released_like.path_by_path(
        released_like.selective_scan_ref, tensors, case.options
    )
    expected = scan.by_backend('reference')(tensors, case.options)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for grad, reference in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    ):
        torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-8)


def test_contestants_take_turns_on_rotating_inputs():
    calls = []
    timings = time_side_by_side(
        {
            name: lambda i, name=name: calls.append((name, i))
            for name in ('a', 'b')
        },
        'cpu',
        **{**FULL, 'sample_seconds': 0.0},
    )
    assert timings['a'].warm_ups == timings['b'].warm_ups >= 10
    assert {i for _, i in calls} == set(range(BUFFERS)) >= {0, 1, 2}
    rounds = [name for name, _ in calls[20:]]
    for start in range(0, len(rounds), 4):  # two entries of each
        assert sorted(rounds[start : start + 4]) == ['a', 'a', 'b', 'b']
    assert len(rounds) // 4 == len(timings['a'].entries_ms[0]) >= 7


def test_difference_below_the_spread_of_two_entries_is_noise():
    slow = Timing(([10.0, 11.0, 12.0], [12.0, 13.0, 14.0]), 1, 10)
    near = Timing(([10.0, 10.5, 11.0], [10.0, 10.5, 11.0]), 1, 10)
    fast = Timing(([4.0, 4.0, 4.0], [4.0, 4.0, 4.0]), 1, 10)
    assert (slow.median, slow.spread) == (12.0, 2.0)
    assert measure.ratio(near, slow) == 'noise'
    assert measure.ratio(fast, slow) == '3.00'
    assert measure.ratio(slow, fast) == '0.33'


@pytest.mark.parametrize(
    'measured, at_most, verdict',
    [
        (3.9, False, 'not reached'),
        (4.0, False, 'reached'),
        (15.0, False, 'aim reached'),
        (4.1, True, 'not reached'),
        (3.9, True, 'reached'),
    ],
)
def test_verdict_on_a_goal(measured, at_most, verdict):
    aim = 1.0 if at_most else 15.0
    goal = Goal('it', measured, must=4.0, aim=aim, at_most=at_most)
    assert goal.verdict == verdict
