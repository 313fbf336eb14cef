"""The model card of a run's adapter: adapter/README.md, as the Hugging Face hub reads it.

The form is templates/model_card.md. Names of data, folders and modalities may be hostile: the front
matter takes strings as JSON, which YAML contains, and the text escapes Markdown's characters.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError

from grpo.report.checklist import LOADER, checklist, files
from grpo.report.token_table import DAMAGED
from grpo.run.atomic import write_whole
from grpo.run.metrics_log import history
from grpo.run.terminal import visible
from grpo.settings.config import Config
from grpo.settings.flags import flag, shown

NO_PART = ("out", "resume", "cache", "quiet")  # settings that have no part in an adapter
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
SPECIAL = re.compile(r"[\\`*_\[\]<>#|~&$]|^[-+=]")  # has a meaning in Markdown


def write_card(run: Path) -> None:
    """Write the card of a run's adapter, if there is one, from all that the folder holds.

    A folder that cannot be read, as after a change by hand, gets a line on stderr in its place.
    """
    if (run / "adapter").is_dir():
        try:
            write_whole(run / "adapter" / "README.md", card(run).encode())
        except (*DAMAGED, TemplateError) as error:
            print(f"{run}: no model card is written ({visible(str(error))})", file=sys.stderr)


def card(run: Path) -> str:
    """Return the card of a run. Raises one of DAMAGED or jinja2's TemplateError."""
    from data.readers.hub import HUB

    config, known = Config.load(run / "config.json"), files(run)
    known |= {"record": known["config"], "steps": len(history(run)), "items": checklist(run)}
    form = Environment(loader=LOADER, undefined=StrictUndefined, finalize=in_markdown)
    form.trim_blocks = form.lstrip_blocks = True
    form.filters["visible"], form.policies["json.dumps_kwargs"] = visible, {"ensure_ascii": False}
    known["on_hub"] = HUB_ID.fullmatch(config.model) and not Path(config.model).exists()
    known["hub"] = {name: data.repo.partition("@")[0] for name, data in HUB.items()}
    known |= {"config": config, "command": command(config)}
    return form.get_template("model_card.md").render(known)


def command(config: Config) -> str:
    """Return the command line whose settings are those of `config`.

    >>> command(Config.from_flags("--recipe phantom --steps 6 --blind --out runs/a".split()))
    'python train.py --recipe phantom --modality MRI --blind --steps 6'
    """
    words = ["python", "train.py", "--recipe", config.recipe, "--modality", config.modality]
    for name, value in config.overrides().items():
        if name not in (*NO_PART, "modality"):
            words += [flag(name)] if value is True else [flag(name), shown(value)]
    return shlex.join(words)


def in_markdown(value: Any) -> Any:
    r"""Return a value with all that Markdown would take for a mark escaped, but safe text.

    >>> print(in_markdown("<b>a_b\n# c"))
    \<b\>a\_b\\n\# c
    """
    return SPECIAL.sub(r"\\\g<0>", visible(value)) if type(value) is str else value
