"""Damaged and malicious model folders: no pickle is opened, no code runs, one line says why."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from grpo.settings.errors import UsageError, one_line
from models.chat import Chat
from models.open_policy import load_policy
from models.policy import Policy
from tests.hostile.every import first_by_default, try_every
from tests.tiny import make_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Spoil = Callable[[Path], Any]


def copy_of(model: Path, folder: Path) -> Path:
    """A copy of a model's folder, in which the weights are a link."""
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, folder / file.name)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def text(name: str, content: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)

    return spoil


def pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def index(content: Any, elsewhere: str = "") -> Spoil:
    """The index of shards says this; the weights lie `elsewhere`."""

    def spoil(folder: Path) -> None:
        if elsewhere:
            (folder / WEIGHTS).rename(folder / elsewhere)
        else:
            (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps(content))

    return spoil


def mapped(to: Any) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": {"lm_head.weight": to}}


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        found = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        change(found)
        (folder / WEIGHTS).unlink()
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def fill(value: float) -> Spoil:
    return weights(lambda found: next(iter(found.values())).view(-1)[:1].fill_(value))


CONFIG, TOKENS = "config.json", "tokenizer_config.json"
IMAGES = "preprocessor_config.json"
BIN = "pytorch_model.bin"
LEADS = "only safetensors of its own are read"
FAULTS: dict[str, tuple[Spoil, str]] = {
    "an index to a pickle": (index(mapped(BIN), BIN), LEADS),
    "an index to a pickle above": (index(mapped(f"../{BIN}"), f"../{BIN}"), LEADS),
    "an index to weights above": (index(mapped(f"../{WEIGHTS}"), f"../{WEIGHTS}"), LEADS),
    "an index to the whole disk": (index(mapped("/etc/passwd")), "/etc/passwd"),
    "an index to nothing": (index(mapped("none.safetensors")), "is missing"),
    "an index to a number": (index(mapped(3)), "cannot be loaded"),
    "an index of a list": (index([]), "cannot be loaded"),
    "an index of no map": (index({}), "cannot be loaded"),
    "an index nested deep": (text(INDEX, "[" * 100_000), "cannot be loaded"),
    "pickles alone": (lambda folder: (folder / WEIGHTS).rename(folder / BIN), "only safetensors"),
    "a pickle by another name": (text(WEIGHTS, "\x80\x04cos\nsystem\n."), "is damaged"),
    "an adapter beside it": (text("adapter_config.json", "{}"), "holds an adapter"),
    "another type": (edit(CONFIG, model_type="llama"), "its type is llama"),
    "a newer type": (edit(CONFIG, model_type="qwen3_vl"), "its type is qwen3_vl"),
    "a type of a list": (edit(CONFIG, model_type=["qwen2_vl"]), "its type is"),
    "no type": (edit(CONFIG, model_type=None), "no readable config.json"),
    "a config of a list": (text(CONFIG, "[]"), "no readable config.json"),
    "a config nested deep": (text(CONFIG, "[" * 100_000), "cannot be loaded"),
    "a text model of a text": (edit(CONFIG, text_config="x"), "cannot be loaded"),
    "an eye of a list": (edit(CONFIG, vision_config=[]), "cannot be loaded"),
    "a token in words": (edit(CONFIG, image_token_id="a"), "cannot be loaded"),
    "another token": (edit(CONFIG, image_token_id=1), "of two models"),
    "weights of NaN": (fill(float("nan")), "no finite number"),
    "weights of infinity": (fill(float("inf")), "no finite number"),
    "no weights": (weights(lambda found: found.clear()), "weights are missing"),
    "a weight too many": (weights(lambda found: found.update(evil=torch.ones(1))), "have no place"),
    "a tokenizer of another class": (edit(TOKENS, tokenizer_class="../../x.Evil"), "cannot be"),
    "a tokenizer of a number": (edit(TOKENS, tokenizer_class=5), "cannot be loaded"),
    "a tokenizer nested deep": (text(TOKENS, '{"a":' * 100_000), "cannot be loaded"),
    "a processor of a list": (text(IMAGES, "[]"), "cannot be loaded"),
    "sizes of a list": (edit(IMAGES, size=[]), "cannot be loaded"),
    "pixels in words": (edit(IMAGES, max_pixels="many", size=None), "cannot"),
    "means of NaN": (edit(IMAGES, image_mean=[float("nan")] * 3), "not finite"),
    "deviations of 0": (edit(IMAGES, image_std=[0, 0, 0]), "not finite"),
    "means of two colours": (edit(IMAGES, image_mean=[0.5, 0.5]), "cannot prepare an image"),
    "patches of 0": (edit(IMAGES, patch_size=0), "different patches"),
    "a pipe for a config": (pipe(CONFIG), "no plain file"),
    "a pipe for weights": (pipe(WEIGHTS), "no plain file"),
    "a pipe for a tokenizer": (pipe("added_tokens.json"), "no plain file"),
    "a pipe for settings": (pipe("generation_config.json"), "no plain file"),
}
TEMPLATES = {
    "unfinished": "{% for",
    "that refuses": "{{ raise_exception('no') }}",
    "that reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "that opens a file": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "that includes a file": "{% include '/etc/passwd' %}",
    "that imports": "{% import 'os' as os %}{{ os.system('id') }}",
    "of unknown names": "{{ x.y.z }}",
    "that divides by 0": "{{ 1 / 0 }}",
    "that counts for ever": "{% for i in range(10 ** 12) %}{% endfor %}",
    "that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "without the question": "{{ messages[0]['role'] }}",
    "with the question twice": "{{ messages[0]['content'][1]['text'] * 2 }}",
    "of a number": 5,
}
FAULTS["a template that fails"] = (edit(TOKENS, chat_template="{% for"), "use an -Instruct model")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_a_template_that_fails_is_one_line(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_refused(name: str) -> None:
        monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[name])
        with pytest.raises(UsageError, match="use an -Instruct model") as error:
            Chat(tokenizer)
        assert len(one_line(str(error.value))) < 1000

    try_every(is_refused, TEMPLATES)


def test_a_model_with_a_fault_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    def is_refused(fault: str) -> None:
        model = copy_of(tiny_folder, tmp_path / fault / "model")
        spoil, says = FAULTS[fault]
        spoil(model)
        with pytest.raises(UsageError) as error:
            load_policy(str(model), device="cpu")
        line = one_line(str(error.value))
        assert str(model) in line
        assert says in line
        assert len(line) < 1000

    try_every(is_refused, FAULTS)


EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil: pass\n"
AUTO = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor",
        "AutoModelForImageTextToText")  # fmt: skip
HARMLESS: dict[str, Spoil] = {
    "code for its config": edit(CONFIG, auto_map=dict.fromkeys(AUTO, "evil.Evil")),
    "code for its tokenizer": edit(TOKENS, auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    "code for its images": edit(IMAGES, auto_map=dict.fromkeys(AUTO, "evil.Evil")),
    "code from elsewhere": edit(CONFIG, auto_map={"AutoModel": "no-one/nothing--evil.Evil"}),
    "code for generating": edit("generation_config.json", custom_generate="evil.py"),
    "settings of no JSON": text("generation_config.json", "{"),
    "settings that draw greedily": edit("generation_config.json", top_k=1, temperature=1e-9),
    "a pickle beside safetensors": text(BIN, "\x80\x04cos\nsystem\n."),
    "files of ours": text("evil.pyc", "x"),
}


def opened(folder: Path) -> Policy:
    return load_policy(str(folder), device="cpu")


@pytest.mark.parametrize("what", first_by_default(HARMLESS))
def test_what_lies_beside_the_weights_is_not_run(
    what: str, tiny_folder: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_folder, tmp_path / "model")
    for name in ("evil.py", "modeling_qwen2_vl.py", "custom_generate/generate.py", "__init__.py"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(EVIL)
    HARMLESS[what](model)
    assert opened(model).banned.any()
    assert not (model / "ran").exists()


NAMES = ["", ".", "..", "/", "a/b/c", "\0", "x" * 5000, "~nosuchuser/x", "file:///etc", "a\nb"]


def test_a_name_of_no_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def is_refused(name: str) -> None:
        with pytest.raises((UsageError, OSError)) as error:  # the programs print one line for both
            load_policy(name, device="cpu")
        assert len(one_line(str(error.value))) < 2006

    try_every(is_refused, NAMES)
