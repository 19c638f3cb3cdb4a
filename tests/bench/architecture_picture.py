"""Draw docs/architecture.svg from the tree and its imports: python tests/bench/architecture_picture.py

Rooms from top to bottom, their files and sub-folders in the order that `test_architecture.py` enforces (each imports only
what comes after it), and an arrow for each room that another one imports.
"""

from __future__ import annotations

import ast
import re
import runpy
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "architecture.svg"

WIDTH, MARGIN, LABEL, LANES = 1280, 20, 180, 100  # px; LANES: the room for arrows on the right
COLUMNS, GAP, PADDING = 5, 10, 14
BOX = (WIDTH - 2 * MARGIN - LABEL - LANES - (COLUMNS - 1) * GAP - PADDING) / COLUMNS
COLOURS = {"server": "#1d5b79", "agent": "#6b4a8e", "tools": "#a2571b", "memory": "#3a6b35", "model": "#8a2f3c"}


@dataclass(frozen=True)
class Box:
    """A file or a sub-folder of a room. files: names in a sub-folder, [] for a file."""

    name: str
    purpose: str
    files: list[str]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """(style, text) from top to bottom."""
        title = f"{self.name}/" if self.files else self.name
        purpose = textwrap.wrap(self.purpose, 27, max_lines=4, placeholder=" ...")
        files = textwrap.wrap(" ".join(self.files), 26, break_on_hyphens=False)
        return [("t", title), *(("p", line) for line in purpose), *(("f", line) for line in files)]

    @property
    def height(self) -> float:
        return 14.0 + sum({"t": 18, "p": 14, "f": 13}[style] for style, _ in self.lines)


def _purpose(path: Path) -> str:
    """The first clause of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = re.split(r"[.:] |\.?\n\n|\.$", docstring)[0]
    return " ".join(first.replace("`", "").split())


def boxes(room: str, order: list[str]) -> list[Box]:
    found = []
    for name in order:
        folder = ROOT / room / name
        if not folder.is_dir():
            found.append(Box(name, _purpose(folder.with_suffix(".py")), []))
            continue
        files = [p.stem for p in sorted(folder.glob("*.py")) if p.name != "__init__.py"]
        folders = [f"{p.parent.name}/" for p in sorted(folder.glob("*/__init__.py"))]
        found.append(Box(name, _purpose(folder / "__init__.py"), files + folders))
    return found


def _text(x: float, y: float, style: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(text)}</text>'


def _room(room: str, y: float, order: list[str]) -> tuple[list[str], float]:
    """(SVG of a room whose top is at y, its height)."""
    colour, shapes, top = COLOURS[room], [], y + PADDING
    contents = boxes(room, order)
    for start in range(0, len(contents), COLUMNS):
        row = contents[start : start + COLUMNS]
        height = max(box.height for box in row)
        for i, box in enumerate(row):
            x = MARGIN + LABEL + i * (BOX + GAP)
            shapes.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="{BOX:.1f}" height="{height:.1f}" rx="5" fill="#fff" '
                          f'stroke="{colour}" stroke-opacity=".55"/>')  # fmt: skip
            if box.files:
                shapes.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="4" height="{height:.1f}" fill="{colour}"/>')
            below = top + 6.0
            for style, line in box.lines:
                below += {"t": 15, "p": 14, "f": 13}[style]
                shapes.append(_text(x + 12, below, style, line))
        top += height + GAP
    height = top - GAP + PADDING - y
    label = [_text(MARGIN + 16, y + 34, "room", f"{room}/")]
    purpose = textwrap.wrap(_purpose(ROOT / room / "__init__.py"), 25)
    label += [_text(MARGIN + 16, y + 56 + 15 * i, "about", line) for i, line in enumerate(purpose)]
    band = (f'<rect x="{MARGIN}" y="{y:.1f}" width="{WIDTH - 2 * MARGIN - LANES}" height="{height:.1f}" rx="10" '
            f'fill="{colour}" fill-opacity=".09"/>')  # fmt: skip
    return [band, f'<g fill="{colour}">{"".join(label)}</g>', *shapes], height


def _imported_rooms(room: str, rooms: list[str]) -> list[str]:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / room).rglob("*.py") if p.name != "__init__.py")
    return [
        other for other in rooms if other != room and re.search(rf"^\s*from refdiff\.{other}\b", text, re.MULTILINE)
    ]


def picture() -> str:
    """The whole SVG."""
    rules = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))
    rooms = list(reversed(rules["MAY_IMPORT"]))
    shapes, places, y = [], {}, float(MARGIN + 26)
    for room in rooms:
        drawn, height = _room(room, y, rules["ORDER"][room].split())
        shapes += drawn
        places[room] = (y, y + height)
        y += height + 16
    right = WIDTH - MARGIN - LANES
    for lane, room in enumerate(rooms):
        imported = [places[other][0] for other in _imported_rooms(room, rooms)]
        x, start = right + 22 + 22 * lane, places[room][0] + 30.0
        for end in imported:
            landing = end + 30 - 8 * (len(rooms) - lane - 1) + 16
            shapes.append(f'<path d="M{right} {start:.1f} H{x - 6} q6 0 6 6 V{landing - 6:.1f} q0 6 -6 6 H{right + 8}" '
                          f'fill="none" stroke="{COLOURS[room]}" stroke-width="1.6"/>'
                          f'<path d="M{right + 1} {landing:.1f} l9 -4.5 v9 z" fill="{COLOURS[room]}"/>')  # fmt: skip
    note = "A box imports only boxes after it; an arrow leads to a room that is imported. No import goes the other way."
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" font-family="Helvetica, Arial, sans-serif">',
        "<style>.t{font-size:13px;font-weight:bold;fill:#222}.p{font-size:11px;fill:#444}"
        ".f{font-size:10px;fill:#777;font-family:Menlo,Consolas,monospace}"
        ".room{font-size:22px;font-weight:bold}.about{font-size:11.5px}.note{font-size:12px;fill:#444}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(MARGIN, MARGIN + 10, "note", note),
        *shapes,
        "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
