"""Adapters that are not what they say: refused in one line, and the policy stays what it was."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.settings.errors import UsageError, one_line
from models import lora
from models.open_policy import load_policy
from models.policy import Policy
from tests.conftest import randomise
from tests.hostile.every import try_every
from tests.tiny import make_model

Spoil = Callable[[Path], Any]
FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A policy to read adapters into."""
    base = make_model(tmp_path_factory.mktemp("base") / "model")
    return randomise(load_policy(str(base), device="cpu"))


@pytest.fixture(scope="module")
def saved(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    policy.save(folder)
    return folder


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / lora.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        found = load_file(folder / lora.WEIGHTS)
        change(found)
        (folder / lora.WEIGHTS).unlink()
        save_file(found, folder / lora.WEIGHTS, metadata={"format": "pt"})

    return spoil


def put(value: float) -> Spoil:
    return tensors(lambda found: found[FIRST].view(-1)[:1].fill_(value))


def cut(length: int) -> Spoil:
    return lambda folder: (folder / lora.WEIGHTS).write_bytes(
        (folder / lora.WEIGHTS).read_bytes()[:length]
    )


def header(content: bytes, length: int | None = None) -> Spoil:
    """A safetensors file whose header is this, and says that it is so long."""
    size = struct.pack("<Q", len(content) if length is None else length)
    return lambda folder: (folder / lora.WEIGHTS).write_bytes(size + content + bytes(64))


def entry(**changes: Any) -> Spoil:
    whole = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}
    return header(json.dumps({FIRST: whole}).encode())


def pickled(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / lora.WEIGHTS).unlink()
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/written'\ntR.")

    return spoil


FAULTS: dict[str, tuple[Spoil, str]] = {
    "another rank": (config(r=8), "use --lora-r 8"),
    "another alpha": (config(lora_alpha=1), "--lora-alpha 1"),
    "rank without end": (config(r=10**30), "damaged adapter_config.json"),
    "rank of 10^9": (config(r=10**9), "damaged adapter_config.json"),
    "rank of 0": (config(r=0), "damaged adapter_config.json"),
    "rank below 0": (config(r=-16), "damaged adapter_config.json"),
    "alpha of 0": (config(lora_alpha=0), "damaged adapter_config.json"),
    "rank of infinity": (config(r=float("inf")), "damaged adapter_config.json"),
    "rank of NaN": (config(r=float("nan")), "damaged adapter_config.json"),
    "rank in words": (config(r="many"), "damaged adapter_config.json"),
    "rank of nothing": (config(r=None), "damaged adapter_config.json"),
    "rank of a list": (config(r=[16]), "damaged adapter_config.json"),
    "another method": (config(peft_type="PREFIX_TUNING"), "not plain LoRA (PREFIX_TUNING)"),
    "a method of no text": (config(peft_type=["LORA"]), "not plain LoRA"),
    "DoRA": (config(use_dora=True), "not plain LoRA (LORA, use_dora)"),
    "rsLoRA": (config(use_rslora=True), "use_rslora"),
    "a rank a layer": (config(rank_pattern={"q_proj": 4}), "rank_pattern"),
    "a bias": (config(bias="all"), "bias"),
    "whole modules": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "activated by tokens": (config(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"),
    "a config of a list": (text(lora.CONFIG, "[]"), "damaged adapter_config.json"),
    "a config of no bytes": (text(lora.CONFIG, ""), "damaged adapter_config.json"),
    "a config nested deep": (text(lora.CONFIG, "[" * 100_000), "damaged adapter_config.json"),
    "no config": (lambda folder: (folder / lora.CONFIG).unlink(), "no adapter_config.json"),
    "weights of NaN": (put(float("nan")), "no finite number"),
    "weights of infinity": (put(float("-inf")), "no finite number"),
    "weights of whole numbers": (
        tensors(lambda found: found.update({FIRST: found[FIRST].long()})),
        "no finite number",
    ),
    "a name too many": (tensors(lambda found: found.update(evil=torch.ones(1))), "another base"),
    "a name too few": (tensors(lambda found: found.pop(FIRST)), "another base"),
    "another name": (tensors(lambda found: found.update(x=found.pop(FIRST))), "another base"),
    "another shape": (
        tensors(lambda found: found.update({FIRST: torch.ones(4, 4)})),
        "another base",
    ),
    "no tensor": (tensors(lambda found: found.clear()), "another base"),
    "another base": (text(lora.BASE, '{"name": "x", "fingerprint": "0"}'), "another base (x)"),
    "a base of a list": (text(lora.BASE, "[]"), "damaged"),
    "a base nested deep": (text(lora.BASE, "[" * 100_000), "damaged"),
    "a fingerprint of a list": (text(lora.BASE, '{"fingerprint": [1]}'), "another base"),
    "adapter_model.bin": (pickled("adapter_model.bin"), "only safetensors are read"),
    "adapter_model.pt": (pickled("adapter_model.pt"), "only safetensors are read"),
    "a pickle by another name": (
        lambda folder: (folder / lora.WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n."),
        "damaged",
    ),
    "no bytes": (cut(0), "damaged"),
    "half a length": (cut(4), "damaged"),
    "half a header": (cut(100), "damaged"),
    "half the weights": (cut(20_000), "damaged"),
    "its last byte gone": (cut(-1), "damaged"),
    "a header without end": (header(b"{}", 2**62), "damaged"),
    "a header of no length": (header(b"", 0), "damaged"),
    "a header of no JSON": (header(b"evil"), "damaged"),
    "a header nested deep": (header(b"[" * 100_000), "damaged"),
    "a tensor beyond the end": (entry(data_offsets=[0, 2**40]), "damaged"),
    "a tensor that ends before": (entry(data_offsets=[64, 0]), "damaged"),
    "a tensor of another size": (entry(shape=[2**31, 2**31]), "damaged"),
    "a tensor of a negative size": (entry(shape=[-4, -4]), "damaged"),
    "a tensor of no known kind": (entry(dtype="PICKLE"), "damaged"),
}


def test_an_adapter_with_a_fault_is_refused(policy: Policy, saved: Path, tmp_path: Path) -> None:
    def is_refused(fault: str) -> None:
        folder = Path(shutil.copytree(saved, tmp_path / fault))
        spoil, says = FAULTS[fault]
        spoil(folder)
        before = [parameter.clone() for parameter in policy.parameters()]
        with pytest.raises(UsageError) as error:
            policy.load(folder)
        line = one_line(str(error.value))
        assert says in line
        assert str(folder) in line
        for now, then in zip(policy.parameters(), before, strict=True):
            assert torch.equal(now, then)

    try_every(is_refused, FAULTS)


def test_the_adapter_without_a_fault_is_read(policy: Policy, saved: Path) -> None:
    policy.load(saved)


@pytest.mark.parametrize("place", ["nowhere", "a file", "NUL\0"])
def test_what_is_no_folder_holds_no_adapter(place: str, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("x")
    with pytest.raises(UsageError, match="no adapter_config"):
        policy.load(tmp_path / place)
