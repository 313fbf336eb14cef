"""A user's file of rewards is a plain program, and what it does to the process stays its own."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.own_file import _settings
from rewards.scoring import Reward, RewardError, parse_rewards, score
from tests.hostile import watch
from tests.hostile.every import try_every
from tests.programs import ROOT, Program

SAID = ["a", "bb"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Fail a test that leaves another module's name, and forget the modules that it made."""
    modules = sys.modules.copy()
    yield
    for name in sys.modules.keys() - modules.keys():
        if "mine" in name or "beside" in name:
            del sys.modules[name]
    assert all(sys.modules[name] is modules[name] for name in ("rewards", "json", "torch"))


def paid(folder: Path, source: str, name: str = "mine.py", function: str = "paid") -> list[Any]:
    """What the function of a file with this source pays, called twice as in two steps."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    rewards = parse_rewards(f"{path}:{function}")
    return [score(rewards, ["?"] * 2, SAID, {"letters": ["AB"] * 2})[0] for _ in range(2)]


def settings() -> list[Any]:
    return [read() for read in _settings().values()] + [sys.path.copy()]


LENGTHS = "def paid(completions, **columns):\n    return [len(text) for text in completions]\n"
# What a file may set; a check, in its function, that this still holds there.
SETS = {
    "gradients": ("torch.set_grad_enabled(False)", "not torch.is_grad_enabled()"),
    "the directory": ("os.chdir(os.path.dirname(__file__))", "open('mine.py').close() is None"),
    "the environment": (
        "os.environ['MINE'] = '1'; os.environ.pop('NO_PROXY', 0)",
        "os.environ['MINE'] == '1' and 'NO_PROXY' not in os.environ",
    ),
    "the dtype": ("torch.set_default_dtype(torch.float64)", "torch.ones(1).dtype == torch.float64"),
    "the device": ("torch.set_default_device('meta')", "torch.ones(1).is_meta"),
    "threads": ("torch.set_num_threads(3)", "torch.get_num_threads() == 3"),
    "determinism": (
        "torch.use_deterministic_algorithms(True)",
        "torch.get_deterministic_debug_mode() == 2",
    ),
    "precision": (
        "torch.set_float32_matmul_precision('medium')",
        "torch.get_float32_matmul_precision() == 'medium'",
    ),
    "precision, of one backend": (
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision == 'tf32'",
    ),
    "anomalies": ("torch.autograd.set_detect_anomaly(True)", "torch.is_anomaly_enabled()"),
    "cudnn": (
        "torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True",
        "torch.backends.cudnn.deterministic",
    ),
    "signals": ("signal.signal(15, signal.SIG_IGN)", "signal.getsignal(15) == signal.SIG_IGN"),
    "warnings": ("warnings.simplefilter('error')", "warnings.filters[0][0] == 'error'"),
    "the path": ("sys.path.append('/mine')", "'/mine' in sys.path"),
}
IMPORTS = "import os, random, signal, sys, warnings\nimport torch\n"


def check_set_apart(folder: Path, name: str) -> None:
    sets, holds = SETS[name]
    before = settings()
    checks = LENGTHS.replace("    return", f"    assert {holds}\n    return")
    assert paid(folder, f"{IMPORTS}{sets}\n{checks}") == [[1, 2]] * 2
    assert settings() == before
    # The function itself sets it, at every call.
    late = LENGTHS.replace("    return", f"    {sets}\n    return")
    assert paid(folder, IMPORTS + late) == [[1, 2]] * 2
    # And a function that fails leaves nothing behind.
    late = late.replace("    return", "    1 / 0\n    return")
    with pytest.raises(RewardError, match="division"):
        paid(folder, IMPORTS + late)
    assert settings() == before


def test_a_file_that_switches_gradients_off_leaves_the_run_its_own(tmp_path: Path) -> None:
    for name in ("gradients", "the directory"):
        check_set_apart(tmp_path, name)


@pytest.mark.exhaustive
def test_whatever_a_file_sets_is_put_back_and_holds_in_its_functions(tmp_path: Path) -> None:
    os.environ["NO_PROXY"] = "127.0.0.1"
    try_every(lambda name: check_set_apart(tmp_path, name), SETS)


ASYNC = """
import asyncio
limit, line = asyncio.Semaphore(1), asyncio.Queue()
kept = {}

async def one(text):
    async with limit:
        kept.setdefault("future", asyncio.get_running_loop().create_future())
        await asyncio.sleep(0)
        return len(text)

async def paid(completions, **columns):
    return await asyncio.gather(*map(one, completions))
"""
ASYNC_FORMS = {
    "a lock": ASYNC,
    "the loop of the import": ASYNC + "loop = asyncio.get_event_loop()\n"
    "async def paid(completions, **columns):\n"
    "    return await asyncio.gather(*[loop.create_task(one(text)) for text in completions])\n",
    "a loop of its own": "import asyncio\nasync def one(text): return len(text)\n"
    "def paid(completions, **columns):\n    return [asyncio.run(one(x)) for x in completions]\n",
    "an object": "class Paid:\n    async def __call__(self, completions, **columns):\n"
    "        return [len(text) for text in completions]\npaid = Paid()\n",
}


def test_a_lock_made_once_serves_every_step(tmp_path: Path) -> None:
    assert paid(tmp_path, ASYNC) == [[1, 2]] * 2


@pytest.mark.exhaustive
def test_coroutines_of_any_form_are_run_on_one_loop(tmp_path: Path) -> None:
    def is_run(name: str) -> None:
        assert paid(tmp_path, ASYNC_FORMS[name]) == [[1, 2]] * 2

    try_every(is_run, [*ASYNC_FORMS, *ASYNC_FORMS])


def test_a_cancelled_coroutine_is_one_line(tmp_path: Path) -> None:
    source = "import asyncio\nasync def paid(**columns):\n    raise asyncio.CancelledError\n"
    with pytest.raises(RewardError, match="raised CancelledError"):
        paid(tmp_path, source)


def test_the_module_beside_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def score(text):\n    return len(text)\n")
    late = "def paid(completions, **columns):\n    from beside import score\n"
    late += "    return [score(text) for text in completions]\n"
    assert paid(tmp_path, late) == [[1, 2]] * 2
    assert str(tmp_path) not in sys.path


POOL = """
from multiprocessing import Pool

def one(text):
    return len(text)

def paid(completions, **columns):
    with Pool(2) as pool:
        return pool.map(one, completions)
"""


@pytest.mark.exhaustive
def test_a_function_is_known_by_name_whatever_the_file_is_called(tmp_path: Path) -> None:
    """A pool pickles functions by the names of their modules. No other module is replaced."""

    def is_pickled(name: str) -> None:
        watch.watch(None)  # it is meant to start processes
        handler = signal.signal(signal.SIGTERM, lambda *_: None)  # as a run's
        try:
            assert paid(tmp_path / "own", POOL, name) == [[1, 2]] * 2
        finally:
            signal.signal(signal.SIGTERM, handler)

    try_every(is_pickled, ["mine.py", "json.py", "rewards.py", "mine.v2.py", "my mine.py", "torch"])


def test_two_functions_of_a_file_share_its_module(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "seen = []\n"
        "def first(completions, **columns):\n    seen.append(1)\n    return [0] * 2\n"
        "def second(completions, **columns):\n    return [len(seen)] * 2\n"
    )
    rewards = parse_rewards(f"{path}:first,{path}:second")
    assert score(rewards, ["?"] * 2, SAID, {})[0] == [1, 1]


def test_what_a_function_does_to_its_arguments_is_its_own_affair(tmp_path: Path) -> None:
    path, said, letters = tmp_path / "mine.py", list(SAID), ["AB"] * 2
    source = "def paid(completions, letters, **columns):\n    completions.clear()\n"
    path.write_text(source + "    letters[0] = ''\n    return [1, 2]\n")
    rewards = parse_rewards(f"{path}:paid")
    assert score(rewards, ["?"] * 2, said, {"letters": letters})[0] == [1, 2]
    assert (said, letters) == (SAID, ["AB"] * 2)


def values_of(returned: Any) -> list[float]:
    return score([Reward("mine", lambda **_: returned)], ["?"] * 2, SAID, {})[0]


# What a function returns, and the floats that this is.
NUMBERS: dict[str, tuple[Any, list[float]]] = {
    "fractions": ([Fraction(1, 2), Decimal("0.25")], [0.5, 0.25]),
    "truths": ([True, False], [1.0, 0.0]),
    "numpy's floats": (np.array([0.5, 2], dtype=np.float32), [0.5, 2.0]),
    "numpy's truths": (np.array([True, False]), [1.0, 0.0]),
    "numpy's integers": ([np.int64(1), np.uint8(2)], [1.0, 2.0]),
    "a tensor": (torch.tensor([0.5, 2.0], requires_grad=True), [0.5, 2.0]),
    "tensors": ([torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor([2])], [0.5, 2.0]),
    "a tuple": ((0.5, 2), [0.5, 2.0]),
    "a column": (np.array([[0.5], [2.0]]), [0.5, 2.0]),
    "large": ([1e18, -1e18], [1e18, -1e18]),
}
NO_NUMBERS: dict[str, Any] = {
    "a huge integer": [10**420, 1],
    "an integer that Python does not write": [-(10**5000), 1],
    "beyond a float32": [1e39, 1.0],
    "beyond a float32's square": [1e20, 1.0],
    "a scalar of numpy": np.array(1.0),
    "a scalar of torch": torch.tensor(1.0),
    "rows": np.ones((2, 3)),
    "a date": np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
    "complex": np.array([1j, 1]),
    "texts": ["1", "2"],
    "objects": [object(), 1],
    "an iterator": iter([1, 2]),
}


def test_a_huge_integer_is_one_line_and_so_is_1e39() -> None:
    for returned in ([10**420, 1], [1, 1e39]):
        with pytest.raises(RewardError, match=r"returned 1.*; return a finite float"):
            values_of(returned)
    rewards = [Reward("mine", lambda **_: [1e10, 1.0], 1e10)]
    with pytest.raises(RewardError, match=r"times its weight at most 1e\+18"):
        score(rewards, ["?"] * 2, SAID, {})


@pytest.mark.exhaustive
def test_a_number_of_any_type_is_a_float_and_all_else_one_line() -> None:
    def is_read(name: str) -> None:
        if name in NUMBERS:
            returned, floats = NUMBERS[name]
            assert values_of(returned) == floats
            return
        with pytest.raises(RewardError, match="reward 'mine' returned") as error:
            values_of(NO_NUMBERS[name])
        assert len(str(error.value)) < 300

    try_every(is_read, [*NUMBERS, *NO_NUMBERS])


RUN = ["--recipe", "phantom", "--train-size", "4", "--val-size", "2", "--eval-size", "0"]
RUN += ["--ood", "none", "--prompts-per-step", "2", "--group-size", "2", "--steps", "2"]
RUN += ["--max-completion-length", "8", "--device", "cpu", "--cache", "none"]


@pytest.mark.slow
def test_a_run_is_as_without_what_its_file_does(tmp_path: Path) -> None:
    watch.watch(None)  # it starts programs
    seeds = "torch.manual_seed(1); random.seed(1)\n"
    whole = IMPORTS + seeds + "\n".join(sets for sets, _ in SETS.values()) + "\n"
    whole += LENGTHS.replace("    return", f"    {seeds}    return")
    metrics = {}
    for name, source in {"plain": LENGTHS, "wild": whole}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.py").write_text(source)
        flags = [*RUN, "--reward", f"format,{folder / 'mine.py'}:paid", "--out", "run"]
        done = Program(sys.executable, str(ROOT / "train.py"), *flags, where=folder).finish()
        assert done.returncode == 0, done.stderr
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        metrics[name] = [
            {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
            for line in lines
        ]
    assert metrics["wild"] == metrics["plain"]
