"""Fixtures that all tests share: a random tiny Qwen2-VL and policies made from it."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from models.open_policy import load_policy
from models.policy import Policy
from tests import programs
from tests.models.hub import make_hub_folder
from tests.rewards.judges.server import Server, serving
from tests.tiny import make_model

LEFT_OUT = "not slow and not exhaustive"  # as in pyproject.toml


def pytest_configure(config: pytest.Config) -> None:
    """Leave no marker out if the user names something below tests/, and gives no -m."""
    own = any(word.startswith("-m") for word in config.invocation_params.args)
    if not own and any(map(_below_tests, named_paths(config))):
        config.option.markexpr = ""


def named_paths(config: pytest.Config) -> list[Path]:
    """The files and folders on the command line, without the names of single tests."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return []
    return [config.invocation_params.dir / word.split("::")[0] for word in config.args]


def _below_tests(path: Path) -> bool:
    return Path(__file__).parent in path.resolve().parents


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that tests are left out, and how to run them."""
    if config.option.markexpr != LEFT_OUT:
        return None
    return "2 markers are left out, slow and exhaustive: pytest -m 'slow or exhaustive' runs them"


def pytest_collection_finish() -> None:
    """Leave what the imports made, 400,000 objects, out of every garbage collection."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums in one order, and no fight for cores with whatever else runs."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def end_programs() -> Iterator[None]:
    """End what a test has started. Programs of a fixture of wider scope started before."""
    before = [*programs.running]
    yield
    programs.end_all(kept=before)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A judge's endpoint on this machine, without keys, proxies and the hub's offline mode."""
    for name in ("MEDVQA_JUDGE_KEY", "HF_HUB_OFFLINE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # It speaks plain http. To read all certificates of a machine takes each client 50 ms.
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random tiny Qwen2VLForConditionalGeneration. Read only."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def true_tokenizer() -> Path | None:
    """The folder of Qwen2-VL's own vocabulary, where MEDVQA_DATA has it."""
    place = os.environ.get("MEDVQA_DATA")
    folder = Path(place) / "qwen2vl_tokenizer" if place else None
    return folder if folder and folder.is_dir() else None


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory, true_tokenizer: Path | None) -> Path:
    """A folder as the hub's Qwen/Qwen2-VL-2B-Instruct, small and random. Read only."""
    return make_hub_folder(tmp_path_factory.mktemp("hub") / "model", true_tokenizer)


def randomise(policy: Policy, seed: int = 7, scale: float = 0.05) -> Policy:
    """Give every B of the LoRA values, as after some training: a fresh adapter changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(scope="session")
def trained(tiny_folder: Path) -> Policy:
    """A policy whose adapter matters. Shared: a test must not change its weights."""
    return randomise(load_policy(str(tiny_folder), device="cpu"))


@pytest.fixture
def fresh(tiny_folder: Path) -> Callable[..., Policy]:
    """Makes a policy of one's own; keyword arguments go to load_policy."""
    return lambda **kwargs: load_policy(str(tiny_folder), **{"device": "cpu", **kwargs})
