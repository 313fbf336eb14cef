"""How large a file and a function may be, and how many files one step may enter.

Each test lists all offenders. The limits are lowered when the code allows it, and never raised.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Program
from tests.test_architecture import PACKAGES, ROOT, SOURCES, nodes, tree

MAX_LINES = 250  # of a file of the product, blank lines, comments and docstrings included
MAX_TEST_LINES = 300
MAX_LINES_OF = {"grpo/loop.py": 120, "train.py": 150, "README.md": 180}
MAX_FUNCTION_LINES = 60
MAX_NESTING = 3  # in the files of the algorithm, grpo/*.py
# What one step enters before backward(): files and functions of ours. A comprehension counts as a
# function up to Python 3.11, and so does what the threads that prepare images enter meanwhile.
MAX_FROM_GRPO = (24, 140)
MAX_FROM_MAIN = (67, 400)

PRODUCT = [path for path in SOURCES if not path.startswith("tests/")]
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def most_lines(path: str) -> int:
    """The limit of a file."""
    usual = MAX_TEST_LINES if path.startswith("tests/") else MAX_LINES
    return MAX_LINES_OF.get(path, usual)


def test_a_file_can_be_read_in_one_sitting() -> None:
    files = (*SOURCES, "README.md")
    lines = {path: (ROOT / path).read_text(encoding="utf-8").count("\n") for path in files}
    assert {path: n for path, n in lines.items() if n > most_lines(path)} == {}


def functions(module: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in nodes(module) if isinstance(node, FUNCTIONS)]


def length(function: ast.FunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def nesting(node: ast.AST, level: int = 0) -> int:
    """The deepest level of blocks in a function. An elif has the level of its if."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        elif_ = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        inside = level + (isinstance(child, BLOCKS) and not elif_)
        deepest = max(deepest, nesting(child, inside))
    return deepest


def test_a_function_fits_a_screen() -> None:
    found = {
        f"{path}: {function.name}": length(function)
        for path in PRODUCT
        for function in functions(tree(path))
    }
    assert {name: n for name, n in found.items() if n > MAX_FUNCTION_LINES} == {}


def test_the_algorithm_is_not_nested_deeply() -> None:
    found = {
        f"{path}: {function.name}": nesting(function)
        for path in PRODUCT
        if Path(path).parent == Path("grpo")
        for function in functions(tree(path))
    }
    assert len(found) > 30
    assert {name: n for name, n in found.items() if n > MAX_NESTING} == {}


@pytest.mark.parametrize(
    ("code", "deepest"),
    [
        ("def f():\n    return 1", 0),
        ("def f():\n    for a in b:\n        with a:\n            if a: pass", 3),
        ("def f():\n    if a: pass\n    elif b: pass\n    else: pass", 1),
        ("def f():\n    if a: pass\n    else:\n        for a in b: pass", 2),
        ("def f():\n    try: pass\n    except A:\n        while b: pass", 2),
    ],
)
def test_levels_are_counted(code: str, deepest: int) -> None:
    (function,) = functions(ast.parse(code))
    assert nesting(function) == deepest
    assert length(function) == code.count("\n") + 1


def entered(places: list[list[str]]) -> Iterator[str]:
    """What was entered, by file, and how much of both."""
    by_file: dict[str, list[str]] = {}
    for file, function in places:
        by_file.setdefault(file, []).append(function)
    yield f"{len(by_file)} files, {len(places)} functions"
    for file, names in by_file.items():
        yield f"{file}: {', '.join(names)}"


@pytest.mark.slow
def test_one_step_enters_few_files_on_its_way_to_backward(tmp_path: Path) -> None:
    done = Program(sys.executable, str(ROOT / "tests/step_path.py"), str(tmp_path)).finish()
    assert done.returncode == 0, done.stderr
    path = json.loads((tmp_path / "path.json").read_text())
    for name, places in path.items():
        print(f"\n{name}", *entered(places), sep="\n")
    limits = {"from main": MAX_FROM_MAIN, "from grpo": MAX_FROM_GRPO}
    found = {name: (len({f for f, _ in path[name]}), len(path[name])) for name in limits}
    too_many = {
        name: found[name]
        for name, limit in limits.items()
        if any(n > most for n, most in zip(found[name], limit, strict=True))
    }
    settings = [file for file, _ in path["from grpo"] if file.startswith("grpo/settings/")]
    assert (too_many, sorted(set(settings))) == ({}, [])
    assert {file.split("/")[0] for file, _ in path["from main"]} >= {"train.py", *PACKAGES}
