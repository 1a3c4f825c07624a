"""The package's imports only go down, from room to room."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "metadraw"
#: From the bottom up. Users import ``__init__``.
ROOMS = [
    ("errors", "files"),
    ("command",),
    ("data",),
    ("models",),
    ("objectives",),
    ("algorithms",),
    ("results",),
    ("training",),
    ("use",),
    ("__init__",),
]
HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}


def imports(path):
    """The modules of metadraw that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "metadraw")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_file_is_in_a_room():
    assert {room(path) for path in PACKAGE.rglob("*.py")} == set(HEIGHT)


@pytest.mark.parametrize("name", HEIGHT)
def test_imports_go_down(name):
    for path in PACKAGE.rglob("*.py"):
        if room(path) == name:
            for imported in imports(path):
                below = imported.split(".")[1]
                assert HEIGHT[below] <= HEIGHT[name], f"{path.name} imports {imported}"
