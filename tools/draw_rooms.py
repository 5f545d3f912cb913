"""Draw which room of the package imports which, docs/pictures/rooms.svg."""

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vcmamba_mm.files import write_file
from vcmamba_mm.training.command_line import one_line_errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/where.md'


class Room(NamedTuple):
    """A folder of the package, or a file at its top: a row of the table.

    Attributes:
        floor: Imports go to lower ones, or stay in the room.
        uses: Other packages that its files may import.
        on_use: Those that they may import only where they need them.
    """

    floor: int
    uses: frozenset[str]
    on_use: frozenset[str]


def read_rooms(page: str) -> dict[str, Room]:
    """Read the table of ``docs/where.md``."""
    rows = re.findall(
        r'^\| (\d) \| `?(\w+)`? \| (.*?) ?\| (.*?) ?\|$', page, re.M
    )
    return {
        name: Room(
            int(floor),
            *(frozenset(re.findall(r'\w+', its)) for its in packages),
        )
        for floor, name, *packages in rows
    }


class Import(NamedTuple):
    """What one module of a package imports.

    Attributes:
        by: The module, without the package's name; the package itself is
            ``__init__``.
        line: Where it does.
        module: What it imports: a module of the package, called in the same
            way, or another package.
        name: What it takes out of the module, None if that is all of it.
        inside: Whether that is of the package.
        at_head: Whether it must be there whenever the importing one is.
    """

    by: str
    line: int
    module: str
    name: str | None
    inside: bool
    at_head: bool


def modules_of(package: Path) -> dict[str, Path]:
    """The files of a package, by their names as ``Import`` has them."""
    modules = {}
    for path in sorted(package.rglob('*.py')):
        parts = path.relative_to(package).with_suffix('').parts
        if parts[-1] == '__init__' and len(parts) > 1:
            parts = parts[:-1]
        modules['.'.join(parts)] = path
    return modules


def _statements(
    node: ast.AST, at_head: bool = True
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Find the imports below a node, and whether they are at the head."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, at_head
        is_sure = not isinstance(
            child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try, ast.If)
        )
        yield from _statements(child, at_head and is_sure)


def read_imports(package: Path) -> list[Import]:
    """Find what the modules of a package import; none of them is run."""
    modules = modules_of(package)
    imports = []
    for by, path in modules.items():
        folders = path.relative_to(package.parent).parts[:-1]
        for statement, at_head in _statements(ast.parse(path.read_text())):
            base = ''
            if isinstance(statement, ast.ImportFrom):
                above = folders[: len(folders) - statement.level + 1]
                parts = [*above * bool(statement.level), statement.module]
                base = '.'.join(filter(None, parts))
            for alias in statement.names:
                whole, name = base or alias.name, alias.name if base else None
                module, _, rest = whole.partition('.')
                inside = module == package.name
                if inside:
                    module = rest or '__init__'
                    if f'{rest}.{name}'.lstrip('.') in modules:
                        module, name = f'{rest}.{name}'.lstrip('.'), None
                line = statement.lineno
                imports.append(Import(by, line, module, name, inside, at_head))
    return imports


def read_arrows(package: Path) -> dict[str, set[str]]:
    """The rooms that each room imports, but for what follows from others.

    If a imports b and b imports c, an arrow from a to c would say nothing.
    """
    below = defaultdict(set)
    for its in read_imports(package):
        rooms = its.by.partition('.')[0], its.module.partition('.')[0]
        if its.inside and rooms[0] != rooms[1]:
            below[rooms[0]].add(rooms[1])

    def reach(room: str) -> set[str]:
        return below[room].union(*map(reach, below[room]))

    return {
        room: its.difference(*map(reach, its))
        for room, its in sorted(below.items())
    }


# Pixels
WIDTH, HEIGHT, PITCH, STOREY, MARGIN, ROOF = 172, 58, 186, 104, 24, 36
# Where the middle of a room is on its floor, in units of PITCH, and what is
# said of it. The version, a file of one line, is left out.
PLACES = dict(
    __init__=(4.0, 'what configs name'),
    doctor=(0.45, 'what works here'),
    demo=(2.8, 'data, report, painting'),
    training=(2.5, 'what runs a config'),
    inference=(3.5, 'models by name'),
    deploy=(1.0, 'fusing, exporting'),
    analysis=(2.0, 'looking, measuring'),
    classification=(3.0, 'what needs mmpretrain'),
    segmentation=(4.0, 'what segmenters need'),
    models=(1.5, 'backbones by family'),
    model_zoo=(2.5, 'names of the configs'),
    data=(4.0, 'images, masks, archives'),
    checkpoints=(3.15, 'read safely, load wholly'),
    ops=(1.2, 'the scan, all backends'),
    files=(3.5, 'written wholly or not'),
)


class Arrow(NamedTuple):
    """Down from a room, and to the other one below the last floor between."""

    start: tuple[float, float]
    end: tuple[float, float]

    def path(self) -> str:
        (x0, y0), (x1, y1) = self
        bend = max(y0, y1 - STOREY + HEIGHT)
        middle = (bend + y1) / 2
        return (
            f'M{x0:.0f} {y0:.0f} V{bend:.0f} '
            f'C{x0:.0f} {middle:.0f}, {x1:.0f} {middle:.0f}, {x1:.0f} {y1:.0f}'
        )


def lay_out(
    rooms: dict[str, Room], arrows: dict[str, set[str]]
) -> tuple[dict[str, tuple[float, float]], dict[tuple[str, str], Arrow]]:
    """Place rooms and arrows.

    Returns:
        tuple: The middle of the upper edge of each room, and the arrows by
        the rooms at their ends.
    """
    top = max(room.floor for room in rooms.values())
    left, _ = min(PLACES.values())
    corners = {
        name: (
            MARGIN + WIDTH / 2 + (x - left) * PITCH,
            2 * MARGIN + ROOF + (top - rooms[name].floor) * STOREY,
        )
        for name, (x, _) in PLACES.items()
    }
    pairs = [
        (a, b) for a in arrows for b in arrows[a] if {a, b} <= PLACES.keys()
    ]

    def port(room: str, others: list[str], other: str) -> float:
        """Arrows share the edge of a room, from left to right."""
        place = sorted(others, key=PLACES.get).index(other)
        return corners[room][0] + 22 * (place - (len(others) - 1) / 2)

    curves = {}
    for a, b in sorted(pairs):
        start = port(a, [y for x, y in pairs if x == a], b)
        end = port(b, [x for x, y in pairs if y == b], a)
        curves[a, b] = Arrow(
            (start, corners[a][1] + HEIGHT), (end, corners[b][1] - 3)
        )
    return corners, curves


def draw(rooms: dict[str, Room], arrows: dict[str, set[str]]) -> str:
    """Draw the rooms from the top to the ground, as SVG."""
    corners, curves = lay_out(rooms, arrows)
    width = max(x for x, _ in corners.values()) + WIDTH / 2 + MARGIN
    height = max(y for _, y in corners.values()) + HEIGHT + MARGIN
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" text-anchor="middle" '
        'font-family="system-ui, Helvetica, Arial, sans-serif">',
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#64748b"/></marker>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN:.0f}" '
        f'height="{ROOF}" rx="7" fill="#f1f5f9" stroke="#94a3b8"/>',
        f'<text x="{width / 2:.0f}" y="{MARGIN + ROOF / 2 + 5:.0f}" '
        'font-size="14" fill="#0f172a">configs, tools, benchmarks, tests: '
        'they use every room, no room uses them</text>',
    ]
    lines += [
        f'<path d="{curve.path()}" fill="none" stroke="#64748b" '
        'stroke-width="1.5" marker-end="url(#head)"/>'
        for curve in curves.values()
    ]
    for name, (x, y) in corners.items():
        lines += [
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y:.0f}" width="{WIDTH}" '
            f'height="{HEIGHT}" rx="7" fill="#dbeafe" stroke="#3b82f6"/>',
            f'<text x="{x:.0f}" y="{y + 25:.0f}" font-size="16" '
            f'font-weight="bold" fill="#0f172a">{name}</text>',
            f'<text x="{x:.0f}" y="{y + 44:.0f}" font-size="12.5" '
            f'fill="#475569">{PLACES[name][1]}</text>',
        ]
    return '\n'.join([*lines, '</svg>', ''])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'docs/pictures/rooms.svg',
        help='SVG file to write',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(OSError):
        rooms = read_rooms(PAGE.read_text())
        picture = draw(rooms, read_arrows(ROOT / 'vcmamba_mm'))
        write_file(picture.encode(), args.out)


if __name__ == '__main__':
    main()
