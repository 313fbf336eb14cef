"""What tests need to look at a page of the report: a parser, and a run of hostile strings."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rewards.evaluation.rows import rendered
from tests.grpo.report.runs import summary

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "</style></title><img src=x onerror=window.pwned=1>",
    '" onmouseover="window.pwned=1" x="',
    "' autofocus onfocus='window.pwned=1",
    "{{ 7*7 }}{% for x in () %}",
    "a\0b",
    "half a pair \ud83d",
    "\u202eturned round",
    "<!-- <template><svg onload=window.pwned=1>",
)


class Page(HTMLParser):
    """What a page is made of: (tag, attributes) in order, and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []  # of each element, up to the next tag
        self.within = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        self.within = True

    def handle_endtag(self, tag: str) -> None:
        self.within = False

    def handle_data(self, data: str) -> None:
        if self.within:
            self.texts[-1] += data

    def attributes(self, tag: str, name: str = "") -> list[dict[str, Any]]:
        """The attributes of every such element, or of those that have one of that name."""
        return [attrs for found, attrs in self.tags if found == tag and name in ("", *attrs)]


def hostile_run(folder: Path) -> Path:
    """`folder` with every text that data or a model may have written made hostile."""
    texts = iter(HOSTILE * 10_000)
    for file in folder.glob("trace/*.json"):
        record = json.loads(file.read_text())
        for group in record["groups"]:
            fields = ("id", "question", "modality", "question_type", "asked", "prompt", "gold")
            group |= {name: next(texts) for name in fields}
            group["options"] = [next(texts), next(texts)]
            for completion in group["completions"]:
                completion["tokens"] = [next(texts) for _ in completion["tokens"]]
                completion["parts"] = {next(texts): 1.0}
        record["updates"] = [update | {"grad_norm_by_layer": {next(texts): 1.0}}
                             for update in record["updates"]]  # fmt: skip
        file.write_text(json.dumps(record))
    table = summary()
    table["results"] = {**table["results"], HOSTILE[0]: table["results"]["trained"]}
    table["ood_mean"][HOSTILE[0]] = table["ood_mean"]["base"]
    (folder / "summary.json").write_text(json.dumps(table | {"rendered": rendered(table)}))
    lines = [json.dumps({"step": 1, f"rewards/{text}/mean": 0.5}) for text in HOSTILE]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    config = json.loads((folder / "config.json").read_text())
    config["config"] |= {"data": HOSTILE[1], "reward": HOSTILE[2], HOSTILE[3]: HOSTILE[0]}
    config["overrides"] |= {"data": HOSTILE[1]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
