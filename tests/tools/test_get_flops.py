"""Parameters and multiplications by part."""

import re

import pytest
from conftest import CONFIGS

pytest.importorskip('mmpretrain')


def test_get_flops(run, run_here):
    name = 'vcmamba_s_8xb128_in1k'
    out = run('tools/get_flops.py', f'configs/{name}.py').stdout
    rows = {
        line[:9].strip(): list(map(float, re.findall(r'\d+\.?\d*', line[9:])))
        for line in out.splitlines()
    }
    assert rows[''] == [224, 224]
    params, macs = rows['total']
    assert params == 10.190
    # The paper's figure, 1.08 G, counts the scan differently.
    assert macs == pytest.approx(1.08, rel=0.01)
    # 4 layers x 4 paths x 49 tokens x 576 channels x (4 * 16 + 2)
    scan = 4 * 4 * 49 * 576 * 66 / 1e9
    assert rows['scan'] == pytest.approx([scan], abs=5e-4)
    shapes = ['--shape', 64, 96, '--shape', 448]
    out = run_here('get_flops.py', name, *shapes)
    assert '64 x 96      448 x 448' in out
    assert "authors'" not in out  # VCMamba's say no rule
    larger = float(re.search(r'total.* ([\d.]+) GMAC', out)[1])
    assert larger == pytest.approx(4 * macs, rel=1e-3)


def test_by_default_at_the_size_of_the_config(run_here):
    """A backbone without a position embedding says no size."""
    pytest.importorskip('mmseg')
    out = run_here('get_flops.py', 'vmamba_t_upernet_8xb2_160k_ade20k_512x512')
    assert out.split('\n')[0].split() == ['parameters', '512', 'x', '512']


def test_as_the_authors_count(run_here):
    config = CONFIGS / 'tiny_vmamba_upernet.py'
    out = run_here('get_flops.py', config, '--shape', 512)
    norms, total, authors = (
        float(re.search(rf'^{row} .* ([\d.]+) GMAC', out, re.MULTILINE)[1])
        for row in ('norms', 'total', "authors'")
    )
    assert norms == 0 and authors > total
