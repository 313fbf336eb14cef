"""Who imports whom, and what may not be in a file. Every file is checked; files are found by glob.

Each test lists all offenders. tests/test_sizes.py has the limits of lines.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("grpo", "models", "rewards", "data")
TOP_LEVEL = ("train", "evaluate", "tests")
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for where in ("*.py", *(f"{name}/**/*.py" for name in (*PACKAGES, "tests")))
    for path in ROOT.glob(where)
)
# A program run by hand to make the shipped checkpoint: it may wire, and nothing may import it.
PROGRAMS = ("models/pretrain_phantom/__main__.py",)
# What a package may import of ours, and of others (None: anything that is installed).
OURS = {
    "rewards": ("rewards",),
    "grpo": ("grpo",),
    "models": ("models", "grpo.settings"),
    "data": ("data", "grpo.settings"),
}
# What a file may import of others inside its functions: when a judge is asked for, on a terminal,
# when a page, a card or a table is made of what rewards/ and data/ know.
LAZY = {
    "grpo/report/comparison.py": ("rewards",),
    "grpo/report/model_card.py": ("data",),
    "grpo/report/page.py": ("rewards",),
    "grpo/reproduce/ladder.py": ("rewards",),
    "grpo/reproduce/markdown.py": ("rewards",),
    "grpo/run/terminal.py": ("tqdm",),
    "rewards/judges/endpoint.py": ("huggingface_hub", "httpx"),
    "rewards/judges/local.py": ("torch", "transformers"),
    "rewards/own_file.py": ("torch",),
}
OTHERS = {"rewards": (), "grpo": ("torch", "safetensors", "jinja2"), "models": None, "data": None}

# The reward file that a user names on the command line is code, and meant to be run.
RUNS_THE_USERS_CODE = {"rewards/own_file.py": ["exec"]}
# What the ten files of the algorithm may not import: grpo's packages around it.
AROUND = ("grpo.run", "grpo.report", "grpo.reproduce", "grpo.explain")


@cache  # test_sizes.py asks for the same ones
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=path)


@cache
def nodes(module: ast.Module) -> list[ast.AST]:
    """All nodes of a file, found once for all tests."""
    return [*ast.walk(module)]


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    """Free half a million nodes after the last test, so that no later collection visits them."""
    yield
    tree.cache_clear()
    nodes.cache_clear()


def imports(path: str, module: ast.Module) -> set[str]:
    """Full names of the modules that a file imports, at the top or inside functions.

    `from grpo import config` and `from . import config` are both grpo.config.
    """
    found = set()
    folder = path.split("/")[:-1]
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            name = ".".join(filter(None, [base, node.module]))
            found.update(_target(name, alias.name) for alias in node.names)
    return found


def _target(module: str, name: str) -> str:
    """The module that `from module import name` reaches: the package's member, if it is a file."""
    member = f"{module}.{name}"
    place = ROOT / member.replace(".", "/")
    return member if place.is_dir() or place.with_suffix(".py").exists() else module


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a module is one of the packages, or in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def forbidden(path: str, module: ast.Module) -> list[str]:
    """The imports of a file that its package may not have."""
    package = path.split("/")[0]
    body = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    at_once = imports(path, ast.Module(body, []))
    late = {
        name for name in imports(path, module) - at_once if name.split(".")[0] in LAZY.get(path, ())
    }
    wrong = []
    for name in sorted(imports(path, module) - late):
        first = name.split(".")[0]
        if first in (*PACKAGES, *TOP_LEVEL):
            allowed = within(name, OURS[package])
            if path.startswith("grpo/") and path.count("/") == 1:
                allowed &= not within(name, AROUND)
        else:
            others = OTHERS[package]
            allowed = others is None or first in others or first in sys.stdlib_module_names
        if not allowed:
            wrong.append(name)
    return wrong


IN_PACKAGES = [path for path in SOURCES if path.split("/")[0] in PACKAGES and path not in PROGRAMS]


def test_a_package_imports_only_what_it_may() -> None:
    wrong = {path: forbidden(path, tree(path)) for path in IN_PACKAGES}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "line", "wrong"),
    [
        ("rewards/x.py", "import torch", ["torch"]),
        ("rewards/x.py", "from grpo.settings.config import UsageError", ["grpo.settings.config"]),
        ("rewards/x.py", "import json", []),
        ("rewards/judges/local.py", "import torch", ["torch"]),
        ("rewards/judges/local.py", "def f():\n    import torch", []),
        ("rewards/rules.py", "def f():\n    import torch", ["torch"]),
        ("grpo/x.py", "import numpy as np", ["numpy"]),
        ("grpo/x.py", "def f():\n    import models.policy", ["models.policy"]),
        ("grpo/x.py", "from .config import Config", []),
        ("grpo/x.py", "from ..models import tree", ["models.tree"]),
        ("grpo/x.py", "from grpo.run.trace import Trace", ["grpo.run.trace"]),
        ("grpo/x.py", "def f():\n    from grpo import report", ["grpo.report"]),
        ("grpo/run/x.py", "from grpo.run.trace import Trace", []),
        ("models/x.py", "from grpo.loss import k3_kl", ["grpo.loss"]),
        ("models/x.py", "from grpo.run import folder", ["grpo.run.folder"]),
        ("models/x.py", "from grpo.settings import config", []),
        ("data/x.py", "from models import policy", ["models.policy"]),
        ("data/x.py", "import train", ["train"]),
        ("data/x.py", "from PIL import Image", []),
    ],
)
def test_the_import_check_sees_every_form_of_import(path: str, line: str, wrong: list[str]) -> None:
    assert forbidden(path, ast.parse(line)) == wrong


def test_nothing_imports_a_program() -> None:
    names = tuple(path.removesuffix("/__main__.py").replace("/", ".") for path in PROGRAMS)
    importers = {path: imports(path, tree(path)) for path in IN_PACKAGES}
    outside = [path for path in importers if not path.startswith("models/pretrain_phantom/")]
    assert [path for path in outside if any(within(name, names) for name in importers[path])] == []


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """The largest sets of modules that all reach each other by imports (strong components)."""
    reached = {name: reachable(name, imported) for name in imported}
    found = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in imported
        if name in reached[name]
    }
    return sorted(map(list, found))


def reachable(name: str, imported: dict[str, set[str]]) -> set[str]:
    """The modules that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        more = (imported[waiting.pop()] & imported.keys()) - found
        found |= more
        waiting += more
    return found


def test_no_modules_import_each_other() -> None:
    """Imports for type checking and inside functions count."""
    assert circles({module_name(path): imports(path, tree(path)) for path in SOURCES}) == []


def test_the_check_of_circles_finds_them() -> None:
    imported = {"a": {"b", "torch"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a"}}
    assert circles(imported) == [["b", "c"], ["d"]]
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from grpo import loop"
    assert "grpo.loop" in imports("grpo/x.py", ast.parse(hidden))


def test_an_init_file_holds_a_docstring_only() -> None:
    inits = [path for path in SOURCES if path.endswith("__init__.py")]
    assert inits
    assert [path for path in inits if not only_docstring(tree(path))] == []


def only_docstring(module: ast.Module) -> bool:
    return len(module.body) == 1 and ast.get_docstring(module) is not None


def test_the_check_of_init_files_sees_what_is_more() -> None:
    assert only_docstring(ast.parse('"""What it is."""'))
    assert not only_docstring(ast.parse('"""What it is."""\nfrom a import b'))
    assert not only_docstring(ast.parse("from a import b"))


def names_bound(module: ast.Module) -> set[str]:
    """Every name that a file gives to a variable, a parameter or a loop's target."""
    found = set()
    for node in nodes(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def test_no_variable_is_called_of() -> None:
    assert [path for path in SOURCES if "of" in names_bound(tree(path))] == []


def test_the_check_of_names_sees_every_form() -> None:
    lines = ["of = 1", "for a, of in b: pass", "[c for of in d]", "lambda of: 1", "def f(of): pass"]
    lines += ["def f(*, of=1): pass", "def f(**of): pass", "with a as of: pass", "(of := 1)"]
    assert [line for line in lines if "of" not in names_bound(ast.parse(line))] == []


def unsafe_calls(module: ast.Module) -> list[str]:
    """Calls that can run code out of data: eval, exec, unpickling, torch.load without its guard."""
    found = []
    for node in nodes(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found += [f"import {name}" for name in names if name in ("pickle", "dill", "joblib")]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in ("eval", "exec"):
            found.append(name)
        if name == "torch.load" and arguments.get("weights_only") != "True":
            found.append(name)
        if name in ("np.load", "numpy.load") and arguments.get("allow_pickle", "False") != "False":
            found.append(name)
    return found


def test_no_file_runs_code_out_of_data() -> None:
    found = {path: unsafe_calls(tree(path)) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls} == RUNS_THE_USERS_CODE


@pytest.mark.parametrize(
    ("line", "unsafe"),
    [
        ("eval(text)", True),
        ("exec(text)", True),
        ("import pickle", True),
        ("from pickle import loads", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("model.eval()", False),
    ],
)
def test_the_safety_check_sees_unsafe_calls(line: str, unsafe: bool) -> None:
    assert bool(unsafe_calls(ast.parse(line))) == unsafe
