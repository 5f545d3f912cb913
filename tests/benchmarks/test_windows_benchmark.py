"""What windows larger than the map cost."""

import json

import pytest
import windows


@pytest.mark.parametrize(
    'window_size, tokens',
    [
        ('map', [(1024, 32**2), (256, 16**2)]),
        ((14, 7), [(1024, 3 * 3 * 14**2), (256, 3 * 3 * 7**2)]),
        ((160, 56), [(1024, 160**2), (256, 56**2)]),
    ],
)
def test_tokens_of_a_crop(window_size, tokens):
    """A side of 512 / 16 and 512 / 32 tokens, rounded up to the windows."""
    assert windows.count_tokens('s', window_size, 512) == tokens


def test_run(tmp_path):
    windows.main(['--quick', '--out', str(tmp_path)])
    result = json.loads((tmp_path / 'windows_cpu.json').read_text())
    by_map, by_windows = result['results']
    assert by_map['tokens'] == [[16, 16], [4, 4]]
    assert by_windows['tokens'] == [[16, 196], [4, 49]]
    for row in (by_map, by_windows):
        forward, both = (row['passes'][its] for its in windows.PASSES)
        assert 1e5 < forward['peak_bytes'] < both['peak_bytes']
        for its in (forward, both):
            assert len(its['seconds']) == windows.ROUNDS
            assert min(its['seconds']) > 0
    text = (tmp_path / 'windows_cpu.md').read_text()
    assert '| (14, 7) | 196 for 16 | 49 for 4 |' in text
