"""Another model's opinion of a text, through one interface whatever the model runs on.

A `Judge` wraps an OpenAI-compatible endpoint (endpoint.py) or a local language model
(local.py). It is asked inquiries (judge_prompts.py) and gives verdicts, which are kept on
disk: a resumed run meets its old verdicts again and pays for none of them twice. An `Encoder`
(local.py) compares meanings instead.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rewards.scoring import RewardError

if TYPE_CHECKING:
    from rewards.judges.local import Encoder

KINDS = "an http:// or https:// address, hf:ID_OR_FOLDER or embed:ID_OR_FOLDER"


class JudgeError(RewardError):
    """A judge that cannot be opened, or does not answer any more: one line, with the remedy."""


@dataclass(frozen=True)
class Inquiry:
    """What a judge is asked. Only `system` instructs it; `user` holds texts of anyone.

    `choices` are the verdicts to pick from, such as ("yes", "no"); no two differ in case alone.
    """

    system: str
    user: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """One of the inquiry's choices, and why."""

    choice: str
    reason: str


class Backend(Protocol):
    """What a judge runs on."""

    identity: tuple[str, ...]  # verdicts of equal identities may stand for each other; no secrets
    retries: int  # requests that were made again, so far

    def verdicts(
        self, inquiries: Sequence[Inquiry]
    ) -> Generator[tuple[int, Verdict | None], None, None]:
        """Each inquiry's index and verdict in any order; None: the reply cannot be read.

        Raises JudgeError.
        """


class Judge:
    """Asks each thing once: equal inquiries of a call together, those of the cache not at all.

    `cache` is the folder of verdicts, shared by any number of processes; None keeps nothing. A
    reply that cannot be read is not kept.
    """

    def __init__(self, backend: Backend, cache: Path | None = None) -> None:
        self.backend = backend
        self.folder = None if cache is None else Path(cache) / "judge"
        self._counts = self._zero()

    def ask(self, inquiries: Sequence[Inquiry]) -> list[Verdict | None]:
        """The verdicts (n,) in order; None is a reply that could not be read, and is counted.

        Verdicts are kept as they come in, so that those before an error are not lost. Raises
        JudgeError where the judge is gone or the cache cannot be written.
        """
        started = time.monotonic()
        found: dict[Inquiry, Verdict | None] = {}
        for inquiry in dict.fromkeys(inquiries):
            if verdict := self._read(inquiry):
                found[inquiry] = verdict
        open_ = [inquiry for inquiry in dict.fromkeys(inquiries) if inquiry not in found]
        self._counts["judge/cached"] += len(found)
        try:
            if open_:
                self._counts["judge/asked"] += len(open_)
                found |= self._ask(open_)
        finally:
            self._counts["judge/seconds"] += time.monotonic() - started
        return [found[inquiry] for inquiry in inquiries]

    def counts(self) -> dict[str, float]:
        """What happened since the last call of this.

        judge/asked: inquiries put to the model; judge/cached: answered from disk; judge/retries:
        requests made again; judge/unreadable: replies given up on; judge/seconds: time waited.
        """
        counts = self._counts | {"judge/retries": self.backend.retries - self._retries}
        self._counts = self._zero()
        return counts

    def _zero(self) -> dict[str, float]:
        self._retries = self.backend.retries
        names = ("asked", "cached", "retries", "unreadable", "seconds")
        return {f"judge/{name}": 0.0 for name in names}

    def _ask(self, inquiries: Sequence[Inquiry]) -> dict[Inquiry, Verdict | None]:
        found: dict[Inquiry, Verdict | None] = {}
        with closing(self.backend.verdicts(inquiries)) as verdicts:
            for i, verdict in verdicts:
                found[inquiries[i]] = verdict
                if verdict is None:
                    self._counts["judge/unreadable"] += 1
                else:
                    self._write(inquiries[i], verdict)
        return found

    def _path(self, inquiry: Inquiry) -> Path | None:
        """Where the verdict is kept, by all that it depends on; None: without a cache."""
        if self.folder is None:
            return None
        content = [self.backend.identity, inquiry.system, inquiry.user, inquiry.choices]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def _read(self, inquiry: Inquiry) -> Verdict | None:
        path = self._path(inquiry)
        if path is None:
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            choice, reason = kept["choice"], kept["reason"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None  # not there, or damaged: asked and written again
        return Verdict(choice, str(reason)) if choice in inquiry.choices else None

    def _write(self, inquiry: Inquiry, verdict: Verdict) -> None:
        """Write beside the place and rename: a reader or a crash never sees half a file."""
        path = self._path(inquiry)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump(asdict(verdict), file)
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            remedy = "choose another --cache, or --cache none"
            raise JudgeError(f"cannot write verdicts to {self.folder}: {error}; {remedy}") from None


def open_judge(
    spec: str,
    model: str | None = None,
    cache: Path | None = None,
    *,
    timeout: float = 60.0,
    tries: int = 5,
    concurrency: int = 8,
    wait: float = 1.0,
) -> "Judge | Encoder":
    """The judge that `--judge` names: an endpoint's address, hf:ID_OR_FOLDER or embed:ID_OR_FOLDER.

    `model` is the one that an endpoint serves. Of an endpoint, too: at most `concurrency` requests
    at once, each given up after `timeout` seconds of silence and made at most `tries` times, after
    pauses that begin at `wait` seconds and double. Local models are loaded here, an endpoint is not
    called before it is asked. Raises JudgeError.
    """
    kind, _, name = spec.partition(":")
    if kind in ("http", "https") and name.startswith("//"):
        from rewards.judges.endpoint import Endpoint

        limits = {"timeout": timeout, "tries": tries, "concurrency": concurrency, "wait": wait}
        return Judge(Endpoint(spec, model, **limits), cache)
    if kind in ("hf", "embed") and name:
        from rewards.judges.local import Encoder, LanguageModel

        return Judge(LanguageModel(name), cache) if kind == "hf" else Encoder(name)
    raise JudgeError(f"--judge {spec!r}: unknown kind of judge; give {KINDS}")


def open_judges(
    specs: str | None, model: str | None = None, cache: Path | None = None, **limits: float
) -> "list[Judge | Encoder]":
    """The judges of a comma list, at most one that gives verdicts and one encoder; None: none.

    Raises JudgeError.
    """
    names = [name.strip() for name in (specs or "").split(",") if name.strip()]
    kinds = ["embed" if name.startswith("embed:") else "judge" for name in names]
    if len(set(kinds)) < len(kinds):  # whose verdict would be paid for?
        raise JudgeError(f"--judge {specs}: two of one kind; keep one judge and one embed:")
    return [open_judge(name, model, cache, **limits) for name in names]
