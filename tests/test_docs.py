import importlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from mmengine.config import Config

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
        r'(?<!mmsegmentation/)(?:configs|tools|benchmarks|tests|docs)/[\w./-]+\.(?:py|sh|md|png)',
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


def expand(text: str) -> str:
    """Write names like a_{s,m,b}.py out."""
    return re.sub(
        r'([\w./-]*)\{([^{}]*,[^{}]*)\}([\w./-]*)',
        lambda m: ' '.join(m[1] + word + m[3] for word in m[2].split(',')),
        text,
    )


@pytest.mark.parametrize('folder', ['configs', 'tools'])
def test_every_config_and_tool_is_described(folder):
    text = expand((ROOT / 'docs/configs_tools.md').read_text())
    described = set(re.findall(r'[\w./-]+', text))
    files = [
        path.relative_to(ROOT / folder).as_posix()
        for suffix in ('py', 'sh')
        for path in (ROOT / folder).rglob(f'*.{suffix}')
    ]
    # tools/_*.sh are parts of others
    names = {file.removeprefix('_base_/') for file in files}
    names = {name for name in names if name[0] != '_'}
    assert names
    assert not names - described


def test_lengths_of_the_trainings_that_pages_name():
    """Where a page goes on with epoch_300.pth, training ends with it."""
    seen = 0
    for page in PAGES:
        for name, kind, number in re.findall(
            r'work_dirs/(\w+)/(epoch|iter)_(\d+)\.pth', page.read_text()
        ):
            (path,) = (ROOT / 'configs').rglob(f'{name}.py')
            train_cfg = Config.fromfile(path).train_cfg
            key = dict(epoch='max_epochs', iter='max_iters')[kind]
            assert train_cfg[key] == int(number), (page.name, name)
            seen += 1
    assert seen


def test_reference_has_all_public_names():
    text = (ROOT / 'docs/api.md').read_text()
    listed = {line.rpartition('.')[2] for line in re.findall('::: (.*)', text)}
    for module in ('', '.classification', '.datasets', '.deploy', '.models',
                   '.ops'):  # fmt: skip
        public = importlib.import_module(f'vcmamba_mm{module}').__all__
        assert {n for n in public if n[0] != '_'} <= listed, module


def test_links_of_the_readme():
    """mkdocs looks after those of the other pages."""
    text = (ROOT / 'README.md').read_text()
    links = re.findall(r'\]\((?!https?:)([^)#]+)', text)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).is_file(), link
