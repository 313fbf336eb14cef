"""Ask another model for its opinion about a text, and keep its verdicts on disk.

A `Judge` puts inquiries (judge_prompts.py) to an OpenAI-compatible endpoint (endpoint.py) or to a
local language model (local.py). A resumed run finds its old verdicts on disk and pays for none of
them twice. An `Encoder` (local.py) compares meanings instead.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from rewards.judges.endpoint import Endpoint
from rewards.judges.interface import Inquiry, JudgeError, Verdict
from rewards.judges.local import Encoder, LanguageModel

KINDS = "an http:// or https:// address, hf:ID_OR_FOLDER or embed:ID_OR_FOLDER"
COUNTS = ("asked", "cached", "retries", "unreadable", "seconds")


class Judge:
    """Asks `model` each inquiry once: not twice in one call, and not if its verdict is cached.

    `cache` is the folder of verdicts, shared by any number of processes; None keeps nothing. An
    unreadable reply is not kept.
    """

    def __init__(self, model: Endpoint | LanguageModel, cache: Path | None = None) -> None:
        self.model = model
        self.folder = None if cache is None else Path(cache) / "judge"
        self._counts: Counter[str] = Counter()
        self._said = False  # that most replies hold no verdict

    def ask(self, inquiries: Sequence[Inquiry | Verdict | None]) -> list[Verdict | None]:
        """Return the verdicts (n,) in order; None is an unreadable reply, which is counted.

        A verdict or None among the inquiries needs no judge, and is returned as it is.
        Each verdict is kept as soon as it arrives, so an error loses none of those before it.
        Says once that most replies hold no verdict. Raises JudgeError if the judge no longer
        answers or the cache cannot be written.
        """
        started, repeated = time.monotonic(), len(self.model.repeated)
        distinct = list(dict.fromkeys(each for each in inquiries if isinstance(each, Inquiry)))
        found = {each: self._read(each) if self.folder else None for each in distinct}
        missing = [inquiry for inquiry in distinct if found[inquiry] is None]
        with closing(self.model.verdicts(missing)) as verdicts:
            for i, verdict in verdicts:
                found[missing[i]] = verdict
                if verdict and self.folder:
                    self._write(missing[i], verdict)
        missed, asked = list(found.values()).count(None), len(missing)
        self._counts.update(asked=asked, cached=len(distinct) - asked, unreadable=missed)
        self._counts.update(retries=len(self.model.repeated) - repeated)
        self._counts.update(seconds=time.monotonic() - started)
        if 2 * missed > asked and not self._said:
            self._said = True
            problem = f"no verdict in {missed} of {asked} replies, such as {self.model.unread}"
            remedy = "they pay nothing: take another --judge-model, or drop the reward"
            print(f"judge {self.model.shown}: {problem}; {remedy}", file=sys.stderr)
        return [found.get(inquiry, inquiry) for inquiry in inquiries]

    def counts(self) -> dict[str, float]:
        """Return the counts since the last call of this method, and start again from 0.

        judge/asked: inquiries put to the model; judge/cached: verdicts read from disk;
        judge/retries: requests repeated; judge/unreadable: replies given up; judge/seconds: time
        spent in `ask`.
        """
        counts, self._counts = self._counts, Counter()
        return {f"judge/{name}": float(counts[name]) for name in COUNTS}

    def _path(self, inquiry: Inquiry) -> Path:
        """Return the verdict's file, named by a hash of all that the verdict depends on."""
        content = [self.model.identity, inquiry.system, inquiry.user, inquiry.choices]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def _read(self, inquiry: Inquiry) -> Verdict | None:
        """Return the cached verdict, or None if it is absent or damaged."""
        try:
            verdict = Verdict(**json.loads(self._path(inquiry).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return verdict if verdict.choice in inquiry.choices else None

    def _write(self, inquiry: Inquiry, verdict: Verdict) -> None:
        """Write a temporary file and rename it: no reader or crash ever sees half a file."""
        path = self._path(inquiry)
        temporary = path.with_suffix(f".{uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(verdict._asdict()), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            remedy = "choose another --cache, or --cache none"
            raise JudgeError(f"cannot write verdicts to {self.folder}: {error}; {remedy}") from None


Judges = Sequence[Judge | Encoder]


def open_judge(spec: str, model: str | None = None, cache: Path | None = None) -> Judge | Encoder:
    """Open the judge that `--judge` names: an address, hf:ID_OR_FOLDER or embed:ID_OR_FOLDER.

    `model` is that of an `Endpoint`, which is not called before it is asked. A local model is
    loaded here. Raises JudgeError.
    """
    kind, _, name = spec.partition(":")
    if kind in ("http", "https") and name.startswith("//"):
        return Judge(Endpoint(spec, model), cache)
    if kind == "hf" and name:
        return Judge(LanguageModel(name), cache)
    if kind == "embed" and name:
        return Encoder(name)
    raise JudgeError(f"--judge {spec!r}: unknown kind of judge; give {KINDS}")


def open_judges(specs: str | None, model: str | None = None, cache: Path | None = None) -> Judges:
    """Open the judges of a comma-separated list: at most one `Judge` and one `Encoder`.

    None opens none. Raises JudgeError.
    """
    names = [name.strip() for name in (specs or "").split(",") if name.strip()]
    kinds = ["embed" if name.startswith("embed:") else "judge" for name in names]
    if len(set(kinds)) < len(kinds):  # it would be unclear whose verdict counts
        raise JudgeError(f"--judge {specs}: two of one kind; keep one judge and one embed:")
    return [open_judge(name, model, cache) for name in names]
