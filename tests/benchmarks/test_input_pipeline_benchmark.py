"""The benchmark of the input pipeline, with a few pictures."""

import json
import math

import pytest
from conftest import ROOT

pytest.importorskip('mmpretrain')
pytest.importorskip('lmdb')


def test_quick_run(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import input_pipeline

    monkeypatch.setattr(input_pipeline, 'BATCH_SIZE', 2)
    input_pipeline.main(
        ['--quick', '--workers', '1', '2', '--out', str(tmp_path)]
    )
    text = (tmp_path / 'input_pipeline_cpu.md').read_text()
    result = json.loads((tmp_path / 'input_pipeline_cpu.json').read_text())
    assert result['pictures'] == 8
    contestants = [row['contestant'] for row in result['results']]
    assert contestants == list(map(str, input_pipeline.CONTESTANTS))
    for row in result['results']:
        assert f'| {row["contestant"]} |' in text
        low, median, high = row['quartiles_ms']
        assert 0 < low <= median <= high < math.inf
        assert 0 <= row['pixel_difference'] < 1
        if 'without' not in row['contestant']:
            assert set(row['loader']) == {'1', '2'}
            assert all(rate > 0 for (rate,) in row['loader'].values())
    assert result['augmentation_ms'] > 0
    # What is left out on one side only is no comparison.
    storages = 'folder', 'tar', 'LMDB', 'tar, decoded'
    assert [
        goal['name'].split(', against')[0] for goal in result['goals']
    ] == [f'fast, from {storage}' for storage in storages]
    folder = result['results'][0]
    assert sum(folder['stages_ms'].values()) > 0
    first = list(folder['stages_ms'])[:2]
    assert first == ['SeedSample', 'LoadImageFromFile']


def test_a_wrong_contestant_is_noticed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import input_pipeline

    from vcmamba_mm.classification import FastRandomFlip

    def transform(self, results):
        results['img'] = results['img'][::-1]
        return results

    monkeypatch.setattr(FastRandomFlip, 'transform', transform)
    monkeypatch.setenv('VCMAMBA_MM_TRACEBACK', '1')
    with pytest.raises(input_pipeline.WrongResultError, match='differ from'):
        input_pipeline.main(['--quick', '--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())
