"""What a report on a run must state: the six items of MI-CLEAR-LLM, filled from the run's folder.

MI-CLEAR-LLM: Park et al. 2024, Korean J Radiol 25:865. The form is templates/checklist.txt; a fact
that the folder does not hold, or that cannot be read there, is MISSING.
"""

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined

from grpo.report.token_table import DAMAGED
from grpo.run.terminal import visible

LOADER = FileSystemLoader(Path(__file__).with_name("templates"))
FILES = ("config", "adapter/base", "evaluation", "summary")


def checklist(run: Path) -> list[list[str]]:
    """Return the six items: the name of each, then its facts, a line each."""
    form = Environment(undefined=ChainableUndefined, trim_blocks=True, loader=LOADER)
    form.finalize = _fact
    known = files(run)
    weights = run / "adapter" / "adapter_model.safetensors"
    known["adapter"] = sha256(weights.read_bytes()).hexdigest() if weights.exists() else None
    prompts: dict[str, str] = {}
    for file in sorted(run.glob("trace/*.json")):
        with suppress(*DAMAGED):
            prompts |= {group["asked"]: group["prompt"] for group in _read(file)["groups"]}
    text = form.get_template("checklist.txt").render(known, prompts=prompts)
    return [[*map(visible, item.split("\n"))] for item in text.strip().split("\n\n")]


def _fact(value: Any) -> Any:
    """Return a value as the form shows it, a text on one line; a prompt, marked safe, has more."""
    if isinstance(value, Undefined | None):
        return "MISSING"
    return visible(value) if type(value) is str else value


def files(run: Path) -> dict[str, Any]:
    """Return what the FILES of a run hold, by name without folder."""
    return {Path(name).name: _read(run / f"{name}.json") for name in FILES}


def _read(file: Path) -> Any:
    """Return what a JSON file holds; nothing if it cannot be read."""
    with suppress(*DAMAGED):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}
