"""The rules of the house that a reader relies on and a reviewer would forget to check.

Everything is found by globbing, so a file is held to the rules from the moment it exists.
"""

from __future__ import annotations

import ast
import sys
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
# What a file may import of others inside its functions: when a judge is asked for, on a terminal.
LAZY = {
    "grpo/run/terminal.py": ("tqdm",),
    "rewards/judges/endpoint.py": ("huggingface_hub", "httpx"),
    "rewards/judges/local.py": ("torch", "transformers"),
}
OTHERS = {"rewards": (), "grpo": ("torch", "safetensors", "jinja2"), "models": None, "data": None}

# The reward file that a user names on the command line is code, and meant to be run.
RUNS_THE_USERS_CODE = {"rewards/scoring.py": ["exec"]}

MAX_LINES = 269
MAX_TEST_LINES = 300  # tables of cases
MAX_LOOP_LINES = 155


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=path)


def imports(path: str, module: ast.Module) -> set[str]:
    """Full names of the modules that a file imports, at the top or inside functions.

    `from grpo import config` and `from . import config` are both grpo.config.
    """
    found = set()
    folder = path.split("/")[:-1]
    for node in ast.walk(module):
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
            allowed = any(name == ours or name.startswith(ours + ".") for ours in OURS[package])
        else:
            others = OTHERS[package]
            allowed = others is None or first in others or first in sys.stdlib_module_names
        if not allowed:
            wrong.append(name)
    return wrong


IN_PACKAGES = [path for path in SOURCES if path.split("/")[0] in PACKAGES and path not in PROGRAMS]


@pytest.mark.parametrize("path", IN_PACKAGES)
def test_a_package_imports_only_what_it_may(path: str) -> None:
    assert forbidden(path, tree(path)) == []


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
    names = {path.removesuffix(".py").replace("/", ".") for path in PROGRAMS}
    for path in IN_PACKAGES:
        assert not imports(path, tree(path)) & names


@pytest.mark.parametrize("path", SOURCES)
def test_a_file_can_be_read_in_one_sitting(path: str) -> None:
    lines = (ROOT / path).read_text(encoding="utf-8").count("\n")

    most = MAX_TEST_LINES if path.startswith("tests/") else MAX_LINES
    assert lines <= (MAX_LOOP_LINES if path == "grpo/loop.py" else most)


def unsafe_calls(module: ast.Module) -> list[str]:
    """Calls that can run code out of data: eval, exec, unpickling, torch.load without its guard."""
    found = []
    for node in ast.walk(module):
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


@pytest.mark.parametrize("path", SOURCES)
def test_no_file_runs_code_out_of_data(path: str) -> None:
    assert unsafe_calls(tree(path)) == RUNS_THE_USERS_CODE.get(path, [])


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
