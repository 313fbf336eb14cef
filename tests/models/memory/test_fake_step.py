"""A fake step against a real one: the same operations, and the same peak, on the tiny model."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo.run.steps import largest_step
from grpo.settings.config import Config
from models import lora
from models.loading.load import load
from models.lora import attach
from models.memory import fake_device
from models.memory.fake_step import NEVER, fake_step
from models.memory.fitting import Peaks
from models.open_policy import Parts, load_policy
from models.policy import Policy
from models.sampling import cuda_graph
from tests.benchmarks.memory import make_model, tracked
from tests.tiny import NoiseImage, Question

QUESTION = Question("Which side is the lesion on?", (NoiseImage(1, 140, 140),))  # 25 image tokens
FLAGS = ["--recipe", "medvlm-r1", "--kl-coef", "0.04", "--device", "cpu", "--prompts-per-step", "1"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config_of(size: int, length: int, *more: str) -> Config:
    sizes = ["--group-size", str(size), "--max-completion-length", str(length)]
    return Config.from_flags([*FLAGS, *sizes, *more])


def parts_of(folder: Path, dtype: str = "float32") -> Parts:
    base, tokenizer, processor = load(str(folder), getattr(torch, dtype), weights=False)
    return Parts(attach(base, 16, 32, 0), tokenizer, processor)


def planned(
    folder: Path, config: Config, question: Question = QUESTION, on: bool = False, **given: Any
) -> Peaks:
    """The fake step of a model in a folder."""
    parts = parts_of(folder, given.get("dtype", "float32"))
    config = replace(config, gradient_checkpointing="on" if on else "off")
    device = given.get("device", CPU)

    def step(policy: Policy) -> None:
        largest_step(policy, config, question, "A text.")

    return fake_step(parts, device, config, step)


def measured(
    folder: Path, config: Config, question: Question = QUESTION, on: bool = False, **given: Any
) -> tuple[int, dict[str, int]]:
    """Bytes held before a real step, and at most in each of its phases, by torch's tracker."""
    switch = "on" if on else "off"
    policy = load_policy(str(folder), device="cpu", gradient_checkpointing=switch, **given)
    return tracked(policy, config, question)


def growth(held: int, phases: dict[str, int]) -> dict[str, int]:
    return {name: peak - held for name, peak in phases.items()}


class Operations(TorchDispatchMode):
    """Names and shapes of the operations on numbers, in their order.

    Moves between host and device are left out, and an operation on a list is one on each of its
    tensors: torch does not take fake tensors in lists.
    """

    ASIDE = ("new_empty", "to", "_local_scalar_dense", "unbind")  # a fake tolist() takes apart

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []
        self.records = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.records and func.namespace == "aten" and name not in self.ASIDE:
            rows = args[0] if name.startswith("_foreach_") else [None]
            for row in rows:
                taken = made if name in ("zeros", "new_zeros") else (args, made)
                taken = [x for x in tree_leaves(taken if row is None else row) if is_number(x)]
                if taken:
                    listed = short(name) in ("linalg_vector_norm", "mul_")
                    shapes = [tuple(x.shape) for x in taken][: 1 if listed else None]
                    self.seen.append((short(name), *shapes))
        return made

    def pausing(self, read: Callable) -> Callable:
        """`read` whose own operations, which make what the host reads, are not recorded."""

        def paused(func: Callable, x: torch.Tensor) -> Any:
            before, self.records = self.records, False
            try:
                return read(func, x)
            finally:
                self.records = before

        return paused


def is_number(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def short(name: str) -> str:
    """The name of an operation without what its forms differ in."""
    return {"new_zeros": "zeros", "_foreach_norm": "linalg_vector_norm"}.get(
        name, name.replace("_foreach_", "")
    )


@pytest.mark.slow
def test_the_operations_of_a_fake_step_are_those_of_a_real_one(tiny_folder, monkeypatch):
    """Completions of two tokens, so that the fake sampler draws all of them."""
    config, seen = config_of(3, 2), []
    policy = load_policy(str(tiny_folder), device="cpu")
    policy.chat.eos = NEVER
    for fake in (True, False):
        with Operations() as operations:
            monkeypatch.setattr(fake_device, "read", operations.pausing(fake_device.read))

            def step(policy: Policy, operations: Operations = operations) -> None:
                operations.records = True
                largest_step(policy, config, QUESTION, "")
                operations.records = False

            if fake:
                fake_step(parts_of(tiny_folder), CPU, config, step)
            else:
                step(policy)
        seen.append(operations.seen)
    # A plan cuts its completions to those of the largest pass, and their log-probs with them.
    seen = [[each for each in one if each != ("slice", (2,), (2,))] for one in seen]
    assert len(seen[1]) > 1900
    differ = [pair for pair in zip(*seen, strict=False) if pair[0] != pair[1]]
    assert (differ[:1], len(seen[0])) == ([], len(seen[1]))


@pytest.mark.parametrize(
    ("on", "dtype"),
    [(True, "bfloat16"), *(pytest.param(on, dtype, marks=pytest.mark.slow) for on, dtype in
     [(False, "float32"), (True, "float32"), (False, "bfloat16")])],
)  # fmt: skip
def test_the_peaks_are_those_of_a_real_step(tiny_folder, dtype, on):
    config = config_of(4, 12)
    fake = planned(tiny_folder, config, on=on, dtype=dtype)
    held, phases = measured(tiny_folder, config, on=on, dtype=dtype)
    real = growth(held, phases)
    assert fake.held == pytest.approx(held, rel=0.001)
    assert list(fake.phases) == list(real)
    off = {n: g / real[n] - 1 for n, g in growth(fake.held, fake.phases).items()}
    # The tower's images are made fake by a copy, which a real CPU does not need.
    assert {n: o for n, o in off.items() if abs(o) > 0.02 and n != "vision tower"} == {}


def test_the_peaks_of_a_step_without_images_are_those_of_a_real_one(tiny_folder):
    config, blind = config_of(4, 12), Question(QUESTION.prompt * 4)
    fake = planned(tiny_folder, config, blind)
    held, phases = measured(tiny_folder, config, blind)
    assert fake.held == pytest.approx(held, rel=0.001)
    real, guess = growth(held, phases), growth(fake.held, fake.phases)
    assert {n: g for n, g in guess.items() if abs(g - real[n]) > 0.02 * real[n]} == {}
    assert guess["update"] > 0


@pytest.mark.slow
def test_a_gpu_has_the_storages_of_its_own_sampler(tiny_folder):
    """Keys of prompts and completions in every row, and the pool of a graph, until the end."""
    config = config_of(4, 300, "--kl-coef", "0")
    on_cpu = planned(tiny_folder, config)
    on_gpu = planned(tiny_folder, config, device=CUDA, dtype="bfloat16")  # flash, without a mask
    rows, slots, layers, width = 4, 512, 2, 2 * 16 * 2  # 77 tokens and 300, in 128s
    cache = 2 * layers * rows * slots * width
    assert cache < on_gpu.phases["sampling"] - on_gpu.held < 2 * cache
    assert on_gpu.budget == 4096
    assert on_cpu.budget != 4096


def test_a_fake_tensor_of_a_gpu_says_so_where_the_model_asks(tiny_folder):
    """`is_cpu` and `is_cuda` can be claimed, `device` cannot: torch's own code reads it."""
    model = fake_device.fake_copy(parts_of(tiny_folder).model)
    weight = next(model.parameters())
    with fake_device.FakeDevice(CUDA):
        assert weight.is_cuda
        assert not weight.is_cpu
    files = [
        *Path(lora.__file__).parent.glob("*.py"),
        *Path(cuda_graph.__file__).parent.glob("*.py"),
    ]
    asked = {file.name: re.findall(r"(\w+)\.device\.type", file.read_text()) for file in files}
    found = {name: {*names} - {"self"} for name, names in asked.items()}
    assert {name: names for name, names in found.items() if names} == {}, "ask is_cpu or is_cuda"


@pytest.mark.slow
@pytest.mark.parametrize(("on", "dtype"), [(True, "bfloat16"), pytest.param(False, "float32",
     marks=pytest.mark.skipif("MEDVQA_PLAN_2B" not in os.environ, reason="half a minute more"))],
)  # fmt: skip
def test_the_peak_of_29_million_parameters_is_planned(tmp_path, dtype, on):
    """To 0.1 % of the growth over what is held before the step; asked for are 5 %."""
    folder, config = Path(make_model("29M", tmp_path / "29M")), config_of(8, 64)
    question = Question("Which side is the lesion on?", (NoiseImage(1, 448, 448),))
    fake = planned(folder, config, question, on, dtype=dtype)
    held, phases = measured(folder, config, question, on, dtype=dtype)
    grown = max(phases.values()) - held
    assert fake.peak - fake.held == pytest.approx(grown, rel=0.001)
    assert grown > 30_000_000
