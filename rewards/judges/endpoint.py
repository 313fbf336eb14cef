"""A judge behind an OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, llama.cpp, ..."""

import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from rewards.judges.address import addresses, find_key
from rewards.judges.interface import Inquiry, JudgeError, Verdict, Verdicts

FORM = (
    'Reply with one JSON object and nothing else: {{"reason": "one short sentence", '
    '"verdict": "..."}}, where the verdict is one of {choices}.'
)
SAMPLING = {"temperature": 0.0, "max_tokens": 1024}  # tokens in the text of a reply
MAX_BODY = 2**22  # bytes of a whole reply
LONGEST_REPLY = 10  # a reply may take this many times `timeout`
LONGEST_PAUSE = 300.0  # seconds, even if the server asks for more

# A harmless question, which tells a judge that refuses one text from a judge that refuses all.
PROBE = Inquiry("You answer questions.", "Is blood red?", ("yes", "no"))

NO_KEY = "set MEDVQA_JUDGE_KEY to a key that may use this model"
NO_PLACE = "mend --judge, such as http://localhost:8000/v1, or --judge-model"

# What is called the verdict: one word, or one as in "B) left", then the next part or the end.
_VERDICT = re.compile(
    r"""\bverdict\W{1,40}(\w+?)(?:\.0|\)[^"\n]{1,200})?"""
    r"""(?=["'\u201d*`.)\s]*(?:,\s*["'\u201c}]|[}\n]|//|$))""",
    re.IGNORECASE,
)
_REASON = re.compile(r"""["']reason["']\s*:\s*("(?:[^"\\]|\\.)*")""", re.DOTALL)


class Fault(Exception):
    """A request failed and may be repeated: the problem, and the seconds to wait if known."""


@dataclass(repr=False, eq=False)  # a repr would show a password in the address
class Endpoint:
    """Asks `model` at `url`, the address before /chat/completions: `http://localhost:8000/v1`.

    At most `concurrency` requests run at once. Each is given up after `timeout` seconds without a
    byte and made at most `tries` times; the pauses between the tries start at `wait` seconds and
    double. `repeated` holds the problems after which a request was made again, `unread` the last
    reply without a verdict. Raises JudgeError if the address is unusable or `model` is missing.
    """

    url: str
    model: str | None
    timeout: float = 60.0
    tries: int = 5
    concurrency: int = 8
    wait: float = 1.0

    def __post_init__(self) -> None:
        from huggingface_hub.utils import get_session

        self.shown, self._address = addresses(self.url)
        if not self.model:
            raise JudgeError(f"judge {self.shown}: which of its models? add --judge-model NAME")
        self.identity = (self.url.rstrip("/"), self.model, FORM)
        self.repeated: list[str] = []  # appended to by all threads
        self.unread = ""
        # Parts of a request that some servers do not take, as their refusals name them.
        self._takes = {"role", *SAMPLING}
        self._key = find_key(self.url, os.environ)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        # An HTTP client of the hub's kind, without the hub's hook that obeys HF_HUB_OFFLINE.
        # Redirections are not followed: the texts are meant for this address only.
        self._client = type(get_session())(headers=headers, timeout=self.timeout)
        self._over = threading.Event()  # set when no verdict is needed any more: ends all pauses

    def verdicts(self, inquiries: Sequence[Inquiry]) -> Verdicts:
        """Yield each inquiry's index and verdict, as they arrive; None: unreadable, twice, or a
        text that the endpoint refuses, though it answers the PROBE.

        Raises JudgeError if the endpoint refuses every request or does not answer the PROBE either.
        """
        self._over.clear()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = {pool.submit(self._ask, inquiry): i for i, inquiry in enumerate(inquiries)}
            for done in as_completed(asked):
                yield asked[done], done.result()
        finally:
            self._over.set()
            pool.shutdown(cancel_futures=True)

    def _ask(self, inquiry: Inquiry) -> Verdict | None:
        """Return the verdict; an unreadable reply is asked for once more."""
        try:
            for repeated in (["a reply without a verdict"], []):
                reply = self._reply(inquiry)
                if verdict := read_verdict(reply, inquiry.choices):
                    return verdict
                self.unread = repr(self._line(reply))
                self.repeated += repeated
        except JudgeError as error:
            self.unread = repr(str(error).removeprefix(f"judge {self.shown}: "))
            self._reply(PROBE)  # raises JudgeError for a fault that every request has
        return None

    def _reply(self, inquiry: Inquiry) -> str:
        """Return the text of a completion, in at most `tries` requests. Raises JudgeError."""
        for attempt in range(1, self.tries + 1):
            try:
                return self._request(inquiry)
            except Fault as fault:
                problem, *pauses = fault.args
            if attempt < self.tries:
                jitter = random.SystemRandom().uniform(1.0, 1.5)  # changes no other random draw
                pauses.append(self.wait * 2 ** (attempt - 1) * jitter)
                if self._over.wait(min(max(pauses), LONGEST_PAUSE)):
                    break
                self.repeated.append(problem)
        remedy = "is it running and reachable? start it, then run this again"
        tried = f"no answer in {self.tries} tries, the last: {problem}"
        raise JudgeError(f"judge {self.shown}: {tried}; {remedy}")

    def _request(self, inquiry: Inquiry) -> str:
        """Make one request and return the completion's text.

        A part of the request that the server does not take is left out from then on. Raises Fault
        for a problem that may pass, JudgeError for one that will not.
        """
        takes, body = self._takes.copy(), bytearray()
        request = {"json": self._form(inquiry, takes)}
        try:
            with self._client.stream("POST", self._address, **request) as response:
                until = time.monotonic() + LONGEST_REPLY * self.timeout
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MAX_BODY or time.monotonic() > until:
                        raise Fault("a reply without end")
        except Fault:
            raise
        except Exception as error:  # the client and its transport raise many kinds
            silent = "Timeout" in type(error).__name__ and f"silent for {self.timeout:g} seconds"
            raise Fault(silent or self._line(f"{type(error).__name__}: {error}")) from None
        if response.status_code >= 300:
            text = body.decode("utf-8", "replace")
            named = {name for name in takes if re.search(rf"\b{name}s?\b", text)}
            if named and response.status_code in (400, 422, 500):
                if named & self._takes:
                    left_out = f"asked without {', '.join(sorted(named))}, which it does not take"
                    print(f"judge {self.shown}: {left_out}", file=sys.stderr)
                self._takes -= named
                return self._request(inquiry)
            self._refused(response.status_code, response.headers, text)
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
            if isinstance(content, list):  # of parts, as the form allows
                content = "".join(str(part.get("text", "")) for part in content)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Fault("a reply in another form than OpenAI's, without choices") from None
        return content if isinstance(content, str) else ""  # a refusal has no text

    def _form(self, inquiry: Inquiry, takes: Collection[str]) -> dict[str, Any]:
        """Return the body of a request, with those of the optional parts that the server takes."""
        form = FORM.format(choices=", ".join(f'"{choice}"' for choice in inquiry.choices))
        turns = {"system": f"{inquiry.system}\n\n{form}", "user": inquiry.user}
        if "role" not in takes:
            turns = {"user": "\n\n".join(turns.values())}
        messages = [{"role": role, "content": content} for role, content in turns.items()]
        sampling = {name: value for name, value in SAMPLING.items() if name in takes}
        return {"model": self.model, "messages": messages, **sampling}

    def _refused(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Raise Fault or JudgeError, without the key, for a status that is no success."""
        # Some servers quote a part of the refused key, so their text is not repeated.
        said = "" if status in (401, 403) else f" ({self._line(text)})"
        if status in (408, 429) or status >= 500:
            raise Fault(f"status {status}{said}", _retry_after(headers.get("retry-after", "")))
        remedy = NO_KEY if status in (401, 403) else NO_PLACE
        raise JudgeError(f"judge {self.shown}: status {status}{said}; {remedy}")

    def _line(self, text: str) -> str:
        """Return the text on one line of at most 150 characters, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text[:1000].split())[:150]


def read_verdict(reply: str, choices: Sequence[str]) -> Verdict | None:
    """Read the verdict of a reply, in time linear in the reply; None if it is in any doubt.

    The reply is the choice alone, or calls one of `choices` the verdict, in any case, and no other:
    in a JSON object, even a broken one, or in words. Anything may surround it: a code fence, a
    sentence, thinking that ends in </think>.

    >>> read_verdict('```json\\n{"reason": "As seen.", "verdict": 3}\\n```', "0123")
    Verdict(choice='3', reason='As seen.')
    >>> read_verdict('{"verdict": "0"} or rather {"verdict": "3"}', "0123") is None
    True
    """
    said = reply.rpartition("</think>")[2]
    named = {word.casefold() for word in _VERDICT.findall(said) or [said.strip(" .()*`'\"\n")]}
    found = [choice for choice in choices if choice.casefold() in named]
    if len(named) > 1 or not found or "<think" in said:
        return None
    reason = ""
    if stated := _REASON.search(said):
        with suppress(ValueError):  # a line break in the text is no doubt about the verdict
            reason = json.loads(stated[1], strict=False)
    return Verdict(found[0], " ".join(reason.split())[:500])


def _retry_after(text: str) -> float:
    """Return the seconds that the server asks to wait; 0 if it names none."""
    with suppress(ValueError, OverflowError):
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
