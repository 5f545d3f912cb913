import importlib
import os
import pkgutil
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.fileio import load

from vcmamba_mm.model_zoo import metafiles

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
    pages = {path: path.read_text() for path in tmp_path.rglob('*.html')}
    page = pages[tmp_path / 'api' / 'index.html']
    assert 'multi_directional_scan' in page and 'layer_scale' in page
    # Rows that stand apart from their table's head are no warning.
    assert [path for path, page in pages.items() if '<p>|' in page] == []


def text_files():
    """What speaks of files and modules: pages, comments, docstrings."""
    for pattern in ('*.md', '*.py', '*.toml', '*.yml', 'Dockerfile',
                    'Makefile', '.ci/run', 'docs/**/*.*'):  # fmt: skip
        yield from ROOT.glob(pattern)
    for folder in ('vcmamba_mm', 'configs', 'tools', 'benchmarks'):
        yield from (ROOT / folder).rglob('*.*')


@pytest.fixture(scope='module')
def texts():
    texts = {
        path: path.read_text()
        for path in text_files()
        if path.suffix != '.png' and '__pycache__' not in path.parts
    }
    assert len(texts) > 150
    return texts


def test_files_named_exist(texts):
    """By their paths from a folder that the reader knows."""
    folders = [
        ROOT / name
        for name in ('', 'vcmamba_mm', 'configs', 'configs/_base_', 'tools')
    ]
    # of mmcv, mmpretrain and mmsegmentation
    others = ('mmsegmentation/', 'onedl_mmcv-', 'visualization/', 'analysis_t')
    seen, lost = 0, []
    for file, text in texts.items():
        for path in re.findall(
            r'(?<![\w/.$}-])\w[\w./-]*/[\w.-]+\.(?:py|sh|md|png|svg)\b', text
        ):
            seen += 1
            if not path.startswith(others) and not any(
                (folder / path).is_file() for folder in (*folders, file.parent)
            ):
                lost.append(f'{file.relative_to(ROOT)}: {path}')
        for path in re.findall(r'(?<![\w/.-])vcmamba_mm/\w[\w/]*', text):
            if not list(ROOT.glob(f'{path.rstrip("/")}*')):
                lost.append(f'{file.relative_to(ROOT)}: {path}')
    assert seen > 300 and not lost, lost


def test_names_exist(texts):
    """Of modules and what is in them, with the package's name or without."""
    package = ROOT / 'vcmamba_mm'
    rooms = '|'.join(
        path.stem for path in package.iterdir() if path.stem[0] not in '_.'
    )
    seen, lost = 0, []
    for file, text in texts.items():
        for name in {
            *re.findall(r'(?<![\w/.-])vcmamba_mm((?:\.[a-zA-Z]\w*)+)', text),
            *re.findall(rf'`(\.?(?:{rooms})(?:\.(?!py`)\w+)+)`', text),
        }:
            seen += 1
            try:
                pkgutil.resolve_name(f'vcmamba_mm.{name.lstrip(".")}')
            except (ImportError, AttributeError):
                lost.append(f'{file.relative_to(ROOT)}: {name}')
    assert seen > 200 and not lost, lost


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
    for module in ('', '.classification', '.data', '.deploy', '.models',
                   '.ops'):  # fmt: skip
        public = importlib.import_module(f'vcmamba_mm{module}').__all__
        assert {n for n in public if n[0] != '_'} <= listed, module


@pytest.mark.parametrize('page', ['README.md', 'docs/families.md'])
def test_tables_of_models_are_those_of_metafiles(page):
    models = {
        model['Name']: model['Metadata']
        for metafile in metafiles()
        for model in load(metafile)['Models']
    }

    def find(start, end, key):
        """What is said of the only model that says it, or a dash."""
        found = [
            metadata[key]
            for name, metadata in models.items()
            if re.fullmatch(rf'{start}_({end})', name) and key in metadata
        ]
        assert len(found) <= 1
        return str(found[0]) if found else '\u2013'

    rows = re.findall(
        r'^\| (\w+-\w+) \| (\S+) M \| \S+ G \| (\S+) \| (\S+) \|',
        (ROOT / page).read_text(),
        re.M,
    )
    assert len(rows) == 12
    for name, parameters, top1, miou in rows:
        arch = name.lower().replace('-', '_')
        whose = 'Paper' if 'vcmamba' in arch else 'Authors'
        plain, any_head = r'\d+xb\d+_in1k', r'(distill_)?\d+xb\d+_in1k'
        segmenter = r'(fpn|upernet)_\w+_ade20k_512x512'
        number = int(find(arch, plain, 'Parameters'))
        assert parameters == f'{number / 1e6:.2f}'
        assert top1 == find(arch, any_head, f'{whose} Top 1 Accuracy')
        assert miou == find(arch, segmenter, f'{whose} mIoU')


@pytest.mark.parametrize('family', ['vmamba', 'plainmamba'])
def test_authors_files_are_those_of_metafiles(family):
    """A classifier's in the row of its variant."""
    page = (ROOT / f'docs/{family}.md').read_text()
    rows = dict(re.findall(r"^\| `'(\w+)'` \|.* \| (.*) \|$", page, re.M))
    found = set()
    for metafile in (ROOT / f'configs/{family}').glob('metafile*.yml'):
        for model in load(metafile)['Models']:
            its = model['Metadata']
            file = its.get('Authors Weights') or its['Authors File']
            name = rf'{family}_(\w+)_\d+xb\d+_in1k'
            if arch := re.fullmatch(name, model['Name']):
                assert file in rows[arch[1]]
                found.add(arch[1])
            else:  # where a row is of all variants, that of the first is named
                assert re.sub(r'\bl[23]_', 'l1_', file) in page
    assert found == rows.keys()


def test_tables_of_mambavision_are_those_of_its_metafile():
    """A variant's, or a config's, the accuracy and the file in one row."""
    rows = (ROOT / 'docs/mambavision.md').read_text().splitlines()
    for model in load(ROOT / 'configs/mambavision/metafile.yml')['Models']:
        its, name = model['Metadata'], model['Name']
        arch = name.split('_')[1]
        first = f"'{arch}'" if 'in21k' not in name else name
        (row,) = (r for r in rows if r.startswith(f'| `{first}` |'))
        assert f'| {its["Authors Top 1 Accuracy"]} |' in row
        assert f'| `{its["Authors File"]}` |' in row


def test_licence_of_mambavisions_weights(texts):
    """Wherever they are named, or a training begins with them."""
    named = re.compile(
        r'mambavision_\w+\.pth\.tar|mambavision\.md#the-authors-weights'
        r'|mambavision_t\S*_finetune'
    )
    files = {
        file.relative_to(ROOT).as_posix(): text
        for file, text in texts.items()
        if file.suffix in ('.py', '.md', '.yml') and named.search(text)
    }
    assert sum(name.startswith('configs/') for name in files) >= 14
    assert {'README.md', 'docs/finetuning.md', 'docs/index.md'} <= {*files}
    assert [n for n, text in files.items() if 'CC-BY-NC' not in text] == []


def test_links_of_the_readme():
    """mkdocs looks after those of the other pages."""
    text = (ROOT / 'README.md').read_text()
    links = re.findall(r'\]\((?!https?:)([^)#]+)', text)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).is_file(), link
