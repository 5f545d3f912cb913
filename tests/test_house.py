"""The house: which room imports which, as docs/where.md says."""

import ast
import re
import runpy
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate

import pytest
from conftest import ROOT

TOOL = runpy.run_path(str(ROOT / 'tools/draw_rooms.py'))
PACKAGE = ROOT / 'vcmamba_mm'
PAGE = (ROOT / 'docs/where.md').read_text()
ROOMS = TOOL['read_rooms'](PAGE)
MAX_LOOSE, MAX_LINES = 8, 500


def room_of(module):
    return module.partition('.')[0]


def with_parents(module):
    """The modules that are imported where one is."""
    return {*accumulate(module.split('.'), '{}.{}'.format)}


def names_in(node):
    """What can be imported from a module, given its syntax tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.alias):
            yield child.asname or child.name
        elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, ast.Name):
            yield child.id
        else:
            yield from names_in(child)


def names_of(modules):
    """By module, what can be imported from it."""
    names = {
        module: {*names_in(ast.parse(path.read_text()))}
        for module, path in modules.items()
    }
    for module in modules:
        parent, _, name = module.rpartition('.')
        names.setdefault(parent or '__init__', set()).add(name)
    return names


def missing(imports, modules):
    names = names_of(modules)
    for its in imports:
        if its.inside and its.module not in modules:
            yield f'{its.by}:{its.line}: there is no {its.module}'
        elif its.inside and its.name and its.name not in names[its.module]:
            yield f'{its.by}:{its.line}: {its.module} has no {its.name}'


def circles(imports):
    graph = defaultdict(set)
    for its in imports:
        if its.inside:
            graph[its.by].add(its.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield 'a circle: ' + ' -> '.join(reversed(error.args[1]))


def not_down(imports):
    for its in imports:
        a, b = room_of(its.by), room_of(its.module)
        if its.inside and a != b and ROOMS[a].floor <= ROOMS[b].floor:
            yield (
                f'{its.by}:{its.line}: {a} (floor {ROOMS[a].floor}) must not '
                f'import {b} (floor {ROOMS[b].floor})'
            )


def strangers(imports):
    for its in imports:
        room = ROOMS[room_of(its.by)]
        if its.inside or its.module in sys.stdlib_module_names:
            continue
        if its.module not in room.uses | room.on_use:
            yield (
                f'{its.by}:{its.line}: {room_of(its.by)} must not import '
                f'{its.module}'
            )


def not_on_use(imports):
    """What needs an optional package because of another file."""
    optional = frozenset().union(*(room.on_use for room in ROOMS.values()))
    packages, below = defaultdict(set), defaultdict(set)
    on_use, at_head = set(), set()
    for its in imports:
        if its.inside:
            (at_head if its.at_head else on_use).add(its.module)
        if its.at_head and not its.inside:
            packages[its.by].add(its.module)
        elif its.at_head:
            below[its.by] |= with_parents(its.module)

    def needs(module):
        found, rest = set(), with_parents(module)
        while rest:
            found |= rest
            rest = set().union(*(below[its] for its in rest)) - found
        return optional & set().union(*(packages[its] for its in found))

    for its in imports:
        if its.at_head and its.inside and its.by not in on_use - at_head:
            allowed = ROOMS[room_of(its.by)].uses | packages[its.by]
            for package in sorted(needs(its.module) - allowed):
                yield (
                    f'{its.by}:{its.line}: {its.module} needs {package}, '
                    'import it on use'
                )


def too_large(package):
    loose = sorted(path.name for path in package.glob('*.py'))
    if len(loose) > MAX_LOOSE:
        yield f'{len(loose)} loose files: {" ".join(loose)}'
    for path in package.rglob('*.py'):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f'{path.relative_to(package)} has {lines} lines'


def faults(package):
    """All that is not as it should be, a line for each."""
    modules = TOOL['modules_of'](package)
    unknown = {room_of(module) for module in modules} - ROOMS.keys()
    if unknown:
        return [f'docs/where.md has no row for {its}' for its in unknown]
    imports = TOOL['read_imports'](package)
    found = [*missing(imports, modules), *circles(imports)]
    if not found:
        found = [*not_down(imports), *strangers(imports), *not_on_use(imports)]
    return [*found, *too_large(package)]


def test_house():
    found = faults(PACKAGE)
    assert not found, '\n'.join(found)
    rooms = {room_of(module): set() for module in TOOL['modules_of'](PACKAGE)}
    for its in TOOL['read_imports'](PACKAGE):
        if not its.inside and its.module not in sys.stdlib_module_names:
            rooms[room_of(its.by)].add(its.module)
    # The table has nothing that is not used.
    assert rooms == {k: room.uses | room.on_use for k, room in ROOMS.items()}


@pytest.mark.parametrize(
    'files, fault',
    [
        # not a fault: down, within a room, on use
        (
            {
                '__init__.py': 'from .training import run\nimport torch',
                'training/__init__.py': '',
                'training/run.py': 'from ..models import base as b\n'
                'from . import loops\n'
                'def f():\n    from ..classification import head',
                'training/loops.py': 'import os.path\nimport numpy as np',
                'models/base.py': 'from vcmamba_mm.ops.scan import scan',
                'ops/scan.py': 'def scan():\n    from . import kernel',
                'ops/kernel.py': 'from . import tiles',
                'ops/tiles.py': 'import triton',
                'classification/head.py': 'import mmpretrain.models',
            },
            None,
        ),
        (
            {
                'models/a.py': 'from .b import x',
                'models/b.py': 'def f():\n    from . import a\nx = 1',
            },
            'a circle: models.',
        ),
        (
            {
                'models/__init__.py': 'from .a import f',
                'models/a.py': 'from ..models import f\ndef f(): ...',
            },
            'a circle: models',
        ),
        (
            {'ops/scan.py': 'from ..models import a', 'models/a.py': ''},
            'ops.scan:1: ops (floor 0) must not import models (floor 2)',
        ),
        (
            {
                'data/a.py': '\nfrom typing import TYPE_CHECKING\n'
                'if TYPE_CHECKING:\n    import vcmamba_mm.training.b',
                'training/b.py': '',
            },
            'data.a:4: data (floor 2) must not import training (floor 4)',
        ),
        (
            {
                'deploy/a.py': 'def f():\n    from ..analysis import b',
                'analysis/b.py': '',
            },
            'deploy.a:2: deploy (floor 3) must not import analysis (floor 3)',
        ),
        (
            {'doctor.py': 'from . import x', '__init__.py': 'x = 1'},
            'doctor:1: doctor (floor 5) must not import __init__ (floor 6)',
        ),
        (
            {'ops/scan.py': 'class A:\n    from mmengine import Config'},
            'ops.scan:2: ops must not import mmengine',
        ),
        (
            {'models/x/a.py': 'def f():\n    import mmpretrain.models'},
            'models.x.a:2: models must not import mmpretrain',
        ),
        (
            {'training/a.py': 'from tools.train import main'},
            'training.a:1: training must not import tools',
        ),
        (
            {
                'training/a.py': 'import torch\nfrom ..ops import b',
                'ops/b.py': 'from .c import x',
                'ops/c.py': 'import triton\nx = 1',
            },
            'training.a:2: ops.b needs triton, import it on use',
        ),
        (
            {
                'training/a.py': 'from ..classification.b import x',
                'classification/b.py': 'import mmpretrain\nx = 1',
            },
            'training.a:1: classification.b needs mmpretrain, import it on',
        ),
        (
            {'training/a.py': '\nfrom . import classification',
             'training/__init__.py': '', 'classification/b.py': ''},
            'training.a:2: training has no classification',
        ),
        ({'training/a.py': 'from .b import x'}, 'there is no training.b'),
        ({'engine.py': ''}, 'docs/where.md has no row for engine'),
        ({f'{room}.py': '' for room in ROOMS}, f'{len(ROOMS)} loose files: '),
        ({'ops/scan.py': 'x = 1\n' * 501}, 'ops/scan.py has 501 lines'),
    ],
)  # fmt: skip
def test_faults_are_found(files, fault, tmp_path):
    package = tmp_path / 'vcmamba_mm'
    for name, content in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    found = faults(package)
    if fault is None:
        assert not found
    else:
        assert any(fault in line for line in found), found
        assert len(found) == 1 or 'needs' in fault, found


def test_files_of_the_page():
    """Every file has its line under the last heading, in its folder."""
    (tree,) = re.findall(
        r'```text\n(.*?)```', PAGE.partition('## The files')[2], re.S
    )
    listed, folders = set(), []
    for line in tree.splitlines():
        name, *what = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        if not name.endswith('/'):
            assert what, name
            listed.add(''.join(folders))
    there = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob('*.py')
        if path.name != '__init__.py' or path.parent == PACKAGE
    }
    assert listed == there


def test_picture_is_up_to_date(run_here, tmp_path):
    run_here('draw_rooms.py', '--out', tmp_path / 'rooms.svg')
    drawn = (tmp_path / 'rooms.svg').read_text()
    there = (ROOT / 'docs/pictures/rooms.svg').read_text()
    assert drawn == there, 'run tools/draw_rooms.py'


def test_no_arrow_behind_a_room():
    arrows = TOOL['read_arrows'](PACKAGE)
    corners, curves = TOOL['lay_out'](ROOMS, arrows)
    assert corners.keys() == ROOMS.keys() - {'version'}
    assert len(curves) > 15
    for (a, b), ((x, top), (_, bottom)) in curves.items():
        assert top < bottom, f'{a} -> {b}'
        for room in corners.keys() - {a, b}:
            middle, y = corners[room]
            if top < y < bottom - TOOL['STOREY'] + TOOL['HEIGHT']:
                beside = abs(x - middle) > TOOL['WIDTH'] / 2
                assert beside, f'{a} -> {b} is behind {room}: move PLACES'


def used(tree):
    """Lines of a file, and what of the package stands there, dotted."""
    own = {}  # by the names of the file
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'
                own[alias.asname or alias.name] = whole
                yield node.lineno, whole
        elif isinstance(node, ast.Constant):
            yield node.lineno, f'{node.value}'
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            owner, name = node.args[0], getattr(node.args[1], 'value', None)
        else:
            continue
        if getattr(owner, 'id', None) in own and isinstance(name, str):
            yield node.lineno, f'{own[owner.id]}.{name}'


def test_what_others_use_is_there():
    """Also in files that seldom run, and where tests put in something else."""
    names = names_of(TOOL['modules_of'](PACKAGE))

    def is_there(parts):
        for i in reversed(range(len(parts))):
            module = '.'.join(parts[:i]) or '__init__'
            if module in names:  # what a class has is not looked at
                return parts[i] in names[module]

    seen, lost = 0, []
    for folder in ('tests', 'tools', 'benchmarks', 'configs'):
        for path in (ROOT / folder).rglob('*.py'):
            for line, dotted in used(ast.parse(path.read_text())):
                if re.fullmatch(rf'{PACKAGE.name}(\.\w+)+', dotted):
                    seen += 1
                    if not is_there(dotted.split('.')[1:]):
                        lost.append(f'{path.name}:{line}: {dotted}')
    assert seen > 400
    assert not lost, '\n'.join(lost)
