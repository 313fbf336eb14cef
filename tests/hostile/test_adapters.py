"""Adapters that are not what they say: refused in one line, and the policy stays what it was."""

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


def nothing(folder: Path) -> None:
    """No weights, of an adapter that lists some modules."""
    config(target_modules=["q_proj"])(folder)
    tensors(dict.clear)(folder)


def of_vision(found: dict[str, torch.Tensor]) -> None:
    for name in list(found):
        found[name.replace("language_model", "visual")] = found.pop(name)


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
    "a rank of half": (config(r=16.5), "damaged adapter_config.json"),
    "a rank in digits": (config(r="16"), "damaged adapter_config.json"),
    "an alpha in digits": (config(lora_alpha="32"), "damaged adapter_config.json"),
    "an alpha of NaN": (config(lora_alpha=float("nan")), "damaged adapter_config.json"),
    "an alpha without end": (config(lora_alpha=float("inf")), "damaged adapter_config.json"),
    "an alpha of 400 digits": (config(lora_alpha=10**400), "damaged adapter_config.json"),
    "another method": (config(peft_type="PREFIX_TUNING"), "LoRA (peft_type PREFIX_TUNING)"),
    "a method of no text": (config(peft_type=["LORA"]), "not plain LoRA"),
    "DoRA": (config(use_dora=True), "not plain LoRA (use_dora True); if peft can merge it"),
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
    "a name too many": (
        tensors(lambda found: found.update(evil=torch.ones(1))),
        "has evil [1], which",
    ),
    "a name too few": (tensors(lambda found: found.pop(FIRST)), "lacks A or B of"),
    "another name": (
        tensors(lambda found: found.update(x=found.pop(FIRST))),
        "has x [16, 64], which",
    ),
    "another shape": (
        tensors(lambda found: found.update({FIRST: torch.ones(4, 4)})),
        f"has {FIRST} [4, 4], which has no place",
    ),
    "a name without end": (
        tensors(lambda found: found.update({".layers" * 200_000: torch.ones(1)})),
        "which has no place here",
    ),
    "no tensor": (tensors(lambda found: found.clear()), "lacks A or B of"),
    "no tensor of those listed": (nothing, "lacks A or B of"),
    "a vision tower of such layers": (
        tensors(of_vision),
        "visual.layers.0.mlp.down_proj.lora_A.weight [16, 128], which has no place here",
    ),
    "another base": (text(lora.BASE, '{"name": "x", "fingerprint": "0"}'), "its own base (x)"),
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


def refused(policy: Policy, saved: Path, folder: Path, fault: tuple[Spoil, str]) -> None:
    """Assert that an adapter with this fault is refused in one line, and nothing of it is read."""
    shutil.copytree(saved, folder)
    spoil, says = fault
    spoil(folder)
    before = [parameter.clone() for parameter in policy.parameters()]
    with pytest.raises(UsageError) as error:
        policy.load(folder)
    line = one_line(str(error.value))
    assert says in line
    assert str(folder) in line
    for now, then in zip(policy.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_an_adapter_with_a_fault_is_refused(policy: Policy, saved: Path, tmp_path: Path) -> None:
    try_every(lambda fault: refused(policy, saved, tmp_path / fault, FAULTS[fault]), FAULTS)


# Fields of adapter_config.json that change what A and B mean, or that no peft we know has.
STARTS = ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica", ["pissa"])
FIELDS: list[tuple[str, Any]] = [
    *(("init_lora_weights", start) for start in STARTS),
    ("rank_pattern", {"q_proj": 4}),
    ("alpha_pattern", {"q_proj": 4}),
    ("bias", "lora_only"),
    ("lora_bias", True),
    ("use_qalora", True),
    ("modules_to_save", ["lm_head"]),
    ("alora_invocation_tokens", [1, 2]),
    ("trainable_token_indices", {"embed_tokens": [0]}),
    ("target_parameters", ["mlp.weight"]),
    ("layer_replication", [[0, 1], [0, 1]]),
    ("megatron_config", {"tensor_model_parallel_size": 2}),
    ("use_bdlora", {"nblocks": 2}),
    ("kasa_config", {"beta": 1}),
    ("swift_type", "LONGLORA"),
    ("a_field_of_next_year", 0.5),
]


def test_a_field_that_changes_what_a_and_b_mean_is_refused_by_its_name(
    policy: Policy, saved: Path, tmp_path: Path
) -> None:
    def is_refused(field: tuple[str, Any]) -> None:
        name, value = field
        folder, says = tmp_path / f"{name} {value}", f"not plain LoRA ({name} {value}"
        refused(policy, saved, folder, (config(**{name: value}), says))

    try_every(is_refused, FIELDS)


def test_a_weight_that_is_on_no_linear_of_ours_is_refused_by_its_name(
    policy: Policy, saved: Path, tmp_path: Path
) -> None:
    names = (
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.model.visual.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.language_model.layers.99.self_attn.q_proj.lora_A.weight",
        "base_model.model.lm_head.lora_B.weight",
        "base_model.model.model.language_model.embed_tokens.lora_embedding_A",
        FIRST.replace("lora_A.weight", "lora_magnitude_vector"),
        FIRST.replace(".weight", ".zeroth.weight"),  # beside that of another adapter
        FIRST.replace("lora_A", "base_layer"),
    )

    def is_refused(name: str) -> None:
        spoil = tensors(lambda found: found.update({name: torch.ones(16, 64)}))
        refused(
            policy, saved, tmp_path / name, (spoil, f"has {name} [16, 64], which has no place here")
        )

    try_every(is_refused, names)


def test_the_adapter_without_a_fault_is_read(policy: Policy, saved: Path) -> None:
    policy.load(saved)


@pytest.mark.parametrize("place", ["nowhere", "a file", "NUL\0"])
def test_what_is_no_folder_holds_no_adapter(place: str, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("x")
    with pytest.raises(UsageError, match="no adapter_config"):
        policy.load(tmp_path / place)
