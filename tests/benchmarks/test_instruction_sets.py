"""CPUs with and without AVX-512: what a report says, and the goals on both."""

import measure
import model
import pytest
import torch

from vcmamba_mm.analysis.timing import Timing


def test_the_environment_names_them(monkeypatch):
    for name in measure.ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)
    environment = measure.environment('cpu')
    assert environment['limited by'] == 'nothing'
    used = environment['used by PyTorch']
    assert used == torch.backends.cpu.get_cpu_capability()
    if used in ('AVX2', 'AVX512'):
        flag = {'AVX2': 'avx2', 'AVX512': 'avx512f'}[used]
        assert flag in environment['instruction sets'].split(', ')
    monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', 'AVX2')
    environment = measure.environment('cpu')
    assert environment['limited by'] == 'ONEDNN_MAX_CPU_ISA=AVX2'


def test_not_on_linux(monkeypatch):
    monkeypatch.setattr(measure.Path, 'exists', lambda path: False)
    environment = measure.environment('cpu')
    assert environment['cpu'] and environment['instruction sets'] == ''


@pytest.mark.parametrize(
    'ours, verdict', [(90, 'reached'), (200, 'not reached')]
)
def test_goals_against_convnext(ours, verdict):
    """Times of 100 ms against 90 or 200."""

    def result(ms):
        return dict(timing=Timing(([ms, ms], [ms, ms]), 1, 1))

    results = {}
    for task, batch in (
        (model.INFERENCE, 1),
        (model.INFERENCE, 4),
        (model.TRAINING, 4),
    ):
        its = {'convnext_tiny, channels_last': 100, 'VCMamba-B': ours}
        if task == model.INFERENCE:
            its['VCMamba-B, fused'] = ours
        results[model.Case(task, 224, batch)] = {
            model.Contestant(*name.split(', ')): result(ms)
            for name, ms in its.items()
        }
    goals = [g for g in model.check_goals('cpu', results) if 'conv' in g.name]
    assert len(goals) == 5
    for goal in goals:
        assert goal.measured == pytest.approx(100 / ours)
        assert goal.verdict == verdict
