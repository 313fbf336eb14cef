"""A judge behind an OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, llama.cpp, ..."""

import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from rewards.judges.address import addresses, find_key
from rewards.judges.interface import Inquiry, JudgeError, Verdict, Verdicts

FORM = (
    'Reply with one JSON object and nothing else: {{"reason": "one short sentence", '
    '"verdict": "..."}}, where the verdict is one of {choices}.'
)
MAX_TOKENS = 1024  # in the text of a reply
MAX_BODY = 2**22  # bytes of a whole reply
LONGEST_REPLY = 10  # a reply may take this many times `timeout`
LONGEST_PAUSE = 300.0  # seconds, even if the server asks for more

REMEDIES = {
    401: "set MEDVQA_JUDGE_KEY to the endpoint's key",
    403: "set MEDVQA_JUDGE_KEY to a key that may use this model",
    404: "mend the address, such as http://localhost:8000/v1, or --judge-model",
}


class Fault(Exception):
    """A request failed and may be repeated: the problem, and the seconds to wait if known."""


@dataclass(repr=False, eq=False)  # a repr would show a password in the address
class Endpoint:
    """Asks `model` at `url`, the address before /chat/completions: `http://localhost:8000/v1`.

    At most `concurrency` requests run at once. Each is given up after `timeout` seconds without a
    byte and made at most `tries` times; the pauses between the tries start at `wait` seconds and
    double. `repeated` holds the problems after which a request was made again. Raises JudgeError
    if the address is unusable or `model` is missing.
    """

    url: str
    model: str | None
    timeout: float = 60.0
    tries: int = 5
    concurrency: int = 8
    wait: float = 1.0

    def __post_init__(self) -> None:
        self.shown, self._address = addresses(self.url)
        if not self.model:
            raise JudgeError(f"judge {self.shown}: which of its models? add --judge-model NAME")
        self.identity = (self.url.rstrip("/"), self.model, FORM)
        self.repeated: list[str] = []  # appended to by all threads
        self._key = find_key(self.url, os.environ)
        self._over = threading.Event()  # set when no verdict is needed any more: ends all pauses

    def verdicts(self, inquiries: Sequence[Inquiry]) -> Verdicts:
        """Yield each inquiry's index and verdict, as they arrive; None: unreadable, twice.

        Raises JudgeError if the endpoint refuses or a request has failed `tries` times.
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
        form = FORM.format(choices=", ".join(f'"{choice}"' for choice in inquiry.choices))
        messages = [
            {"role": "system", "content": f"{inquiry.system}\n\n{form}"},
            {"role": "user", "content": inquiry.user},
        ]
        if verdict := read_verdict(self._reply(messages), inquiry.choices):
            return verdict
        self.repeated.append("a reply without a verdict")
        return read_verdict(self._reply(messages), inquiry.choices)

    def _reply(self, messages: list[dict[str, str]]) -> str:
        """Return the text of a completion, in at most `tries` requests. Raises JudgeError."""
        for attempt in range(1, self.tries + 1):
            try:
                return self._request(messages)
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

    def _request(self, messages: list[dict[str, str]]) -> str:
        """Make one request and return the completion's text.

        Raises Fault for a problem that may pass, JudgeError for one that will not.
        """
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import get_session

        sampling = {"model": self.model, "temperature": 0.0, "max_tokens": MAX_TOKENS}
        request = {
            "json": {"messages": messages, **sampling},
            "headers": {"authorization": f"Bearer {self._key}"} if self._key else {},
            "timeout": self.timeout,
            "follow_redirects": False,  # the texts are meant for this address only
        }
        body = bytearray()
        try:
            with get_session().stream("POST", self._address, **request) as response:
                until = time.monotonic() + LONGEST_REPLY * self.timeout
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MAX_BODY or time.monotonic() > until:
                        raise Fault("a reply without end")
        except Fault:
            raise
        except OfflineModeIsEnabled:
            remedy = "unset HF_HUB_OFFLINE, which forbids all requests"
            raise JudgeError(f"judge {self.shown}: {remedy}") from None
        except Exception as error:  # the client and its transport raise many kinds
            silent = "Timeout" in type(error).__name__ and f"silent for {self.timeout:g} seconds"
            raise Fault(silent or self._line(f"{type(error).__name__}: {error}")) from None
        if response.status_code >= 300:
            self._refused(response.status_code, response.headers, body.decode("utf-8", "replace"))
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Fault("a reply in another form than OpenAI's, without choices") from None
        return content if isinstance(content, str) else ""  # a refusal has no text

    def _refused(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Raise Fault or JudgeError, without the key, for a status that is no success."""
        # Some servers quote a part of the refused key, so their text is not repeated.
        said = "" if status in (401, 403) else f" ({self._line(text)})"
        if status in (408, 429) or status >= 500:
            raise Fault(f"status {status}{said}", _retry_after(headers.get("retry-after", "")))
        remedy = REMEDIES.get(status, "mend --judge or --judge-model")
        raise JudgeError(f"judge {self.shown}: status {status}{said}; {remedy}")

    def _line(self, text: str) -> str:
        """Return the text on one line of at most 150 characters, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text[:1000].split())[:150]


def read_verdict(reply: str, choices: Sequence[str]) -> Verdict | None:
    """Read the verdict of a reply, in time linear in the reply; None if it is in any doubt.

    The reply must hold one JSON object, whose "verdict" is one of `choices` as a text or a number,
    in any case. Anything may surround it: a code fence, a sentence, thinking that ends in </think>.

    >>> read_verdict('```json\\n{"reason": "As seen.", "verdict": 3}\\n```', "0123")
    Verdict(choice='3', reason='As seen.')
    >>> read_verdict('{"verdict": "0"} or rather {"verdict": "3"}', "0123") is None
    True
    """
    said = reply.rpartition("</think>")[2]
    start, end = said.find("{"), said.rfind("}")
    try:
        found = json.loads(said[start : end + 1], object_pairs_hook=_once)
        verdict, reason = found["verdict"], found.get("reason")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if isinstance(verdict, float) and verdict.is_integer():
        verdict = int(verdict)
    if not isinstance(verdict, str | int) or isinstance(verdict, bool):
        return None
    known = {choice.casefold(): choice for choice in choices}
    choice = known.get(str(verdict).strip(" .()\n").casefold())
    text = " ".join(reason.split())[:500] if isinstance(reason, str) else ""
    return None if choice is None else Verdict(choice, text)


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Make an object of these pairs. Raises ValueError if a name occurs twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _retry_after(text: str) -> float:
    """Return the seconds that the server asks to wait; 0 if it names none."""
    with suppress(ValueError, OverflowError):
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
