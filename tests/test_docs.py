import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGES = sorted([*(ROOT / 'docs').glob('*.md'), ROOT / 'README.md'])


def test_builds_without_warnings(tmp_path):
    """Broken links between pages, and to names in the code, are warnings."""
    pytest.importorskip('mkdocs')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ, NO_MKDOCS_2_WARNING='1'),
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'api' / 'index.html').read_text()
    assert 'multi_directional_scan' in page and 'layer_scale' in page


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_files_named_exist(page):
    text = page.read_text()
    paths = re.findall(
        r'(?:configs|tools|benchmarks|tests|docs)/[\w./-]+\.(?:py|sh|md|png)',
        text,
    )
    for path in paths:
        assert (ROOT / path).is_file(), path


def test_python_example_of_the_first_page(capsys):
    code = re.search(
        r'```python\n(import torch.*?)```',
        (ROOT / 'docs' / 'index.md').read_text(),
        re.S,
    )[1]
    exec(compile(code, 'index.md', 'exec'), {})
    said = capsys.readouterr().out.strip()
    assert f'# {said}' in code
