"""A judge behind an OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, llama.cpp, ..."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from urllib.parse import urlsplit

from rewards.judges.judge import Inquiry, JudgeError, Verdict

FORM = (
    'Reply with one JSON object and nothing else: {{"reason": "one short sentence", '
    '"verdict": "..."}}, where the verdict is one of {choices}.'
)
MAX_TOKENS = 1024  # of a reply
MAX_BODY = 2**22  # bytes of a reply, with all that a server may say around it
LONGEST_REPLY = 10  # times the silence that is borne: so long may a reply drip in
LONGEST_PAUSE = 300.0  # seconds, whatever the server asks for

# Where a key goes that was not set for this program: to its own house and nowhere else.
HOUSES = {
    "OPENAI_API_KEY": (".openai.com", ".openai.azure.com"),
    "HF_TOKEN": (".huggingface.co", ".hf.co", ".hf.space", ".huggingface.cloud"),
}
REMEDIES = {
    401: "set MEDVQA_JUDGE_KEY to the endpoint's key",
    403: "set MEDVQA_JUDGE_KEY to a key that may use this model",
    404: "mend the address, such as http://localhost:8000/v1, or --judge-model",
}


class Fault(Exception):
    """A request that failed and may be made again, after `pause` seconds if the server said so."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


class Endpoint:
    """Asks `model` at `url`, the address before /chat/completions: `http://localhost:8000/v1`.

    `sleep` takes the seconds of each pause; None: they pass, unless another request has failed for
    good meanwhile. The limits are those of `rewards.judge.open_judge`. Raises JudgeError.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        timeout: float = 60.0,
        tries: int = 5,
        concurrency: int = 8,
        wait: float = 1.0,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.shown = _shown(url)
        if not urlsplit(url).hostname:
            raise JudgeError(f"judge {url}: names no host; give one as http://localhost:8000/v1")
        if not model:
            raise JudgeError(f"judge {self.shown}: which of its models? add --judge-model NAME")
        self.model, self.tries, self.concurrency, self.wait = model, tries, concurrency, wait
        self.identity = (url.rstrip("/"), model, FORM)
        self.retries = 0
        self._key = find_key(url, os.environ)
        if find_spec("huggingface_hub") is None:
            raise JudgeError(f"judge {self.shown}: pip install huggingface_hub")
        self._headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._address, self.timeout = _completions(url), timeout
        self._over = threading.Event()
        self._sleep = sleep or self._over.wait
        self._lock = threading.Lock()
        self._jitter = random.Random()  # its own: nothing else is drawn differently for it

    def verdicts(
        self, inquiries: Sequence[Inquiry]
    ) -> Generator[tuple[int, Verdict | None], None, None]:
        """Each inquiry's index and verdict, as they come in; None: unreadable, twice.

        Raises JudgeError where the endpoint refuses, or has failed `tries` times.
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
        form = FORM.format(choices=", ".join(f'"{choice}"' for choice in inquiry.choices))
        messages = [
            {"role": "system", "content": f"{inquiry.system}\n\n{form}"},
            {"role": "user", "content": inquiry.user},
        ]
        if verdict := read_verdict(self._reply(messages), inquiry.choices):
            return verdict
        self._again()
        return read_verdict(self._reply(messages), inquiry.choices)

    def _reply(self, messages: list[dict[str, str]]) -> str:
        """The text of a completion, after as many tries as it takes. Raises JudgeError."""
        for attempt in range(self.tries):
            try:
                return self._request(messages)
            except Fault as fault:
                what, asked_for = str(fault), fault.pause
            if attempt + 1 == self.tries:
                break
            backoff = self.wait * 2**attempt * self._jitter.uniform(1.0, 1.5)
            self._sleep(min(max(asked_for, backoff), LONGEST_PAUSE))
            if self._over.is_set():
                break
            self._again()
        raise JudgeError(
            f"judge {self.shown}: no answer in {self.tries} tries, the last: {what}; is it running "
            "and reachable? start it, then run this again"
        )

    def _again(self) -> None:
        with self._lock:
            self.retries += 1

    def _request(self, messages: list[dict[str, str]]) -> str:
        """One request. Raises Fault for what may pass, JudgeError for what will not."""
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import get_session

        law = {"model": self.model, "temperature": 0.0, "max_tokens": MAX_TOKENS}
        asked = {"json": {"messages": messages, **law}, "headers": self._headers}
        asked |= {"timeout": self.timeout, "follow_redirects": False}  # the text is for one address
        try:
            with get_session().stream("POST", self._address, **asked) as response:
                body = self._body(response.iter_bytes())
        except OfflineModeIsEnabled:
            remedy = "unset HF_HUB_OFFLINE, which forbids all requests"
            raise JudgeError(f"judge {self.shown}: {remedy}") from None
        except Exception as error:  # of the client and its transport: any kind
            silent = "Timeout" in type(error).__name__ and f"silent for {self.timeout:g} seconds"
            raise Fault(silent or self._line(f"{type(error).__name__}: {error}")) from None
        if body is None:
            raise Fault("a reply without end")
        self._check(response.status_code, response.headers, body.decode("utf-8", "replace"))
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Fault("a reply in another form than OpenAI's, without choices") from None
        return content if isinstance(content, str) else ""  # a refusal has none

    def _body(self, parts: Iterable[bytes]) -> bytearray | None:
        """All of a reply; None of one that goes on and on."""
        body, until = bytearray(), time.monotonic() + LONGEST_REPLY * self.timeout
        for part in parts:
            body += part
            if len(body) > MAX_BODY or time.monotonic() > until:
                return None
        return body

    def _check(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Raises Fault or JudgeError, without the key, for a status that is no success."""
        if status < 300:
            return
        # Of a refused key, some servers show a part: nothing of theirs is repeated then.
        said = "" if status in (401, 403) else f" ({self._line(text)})"
        if status in (408, 429) or status >= 500:
            raise Fault(f"status {status}{said}", _retry_after(headers))
        remedy = REMEDIES.get(status, "mend --judge or --judge-model")
        raise JudgeError(f"judge {self.shown}: status {status}{said}; {remedy}")

    def _line(self, text: str) -> str:
        """On one line, not a long one, and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text[:1000].split())[:150]


def _completions(url: str) -> str:
    """The address of chat completions, however much of it was given."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        return url
    missing = "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return parts._replace(path=path + missing).geturl()


def find_key(url: str, environment: Mapping[str, str]) -> str | None:
    """The key for this address: MEDVQA_JUDGE_KEY, else the one of the house that it belongs to.

    >>> find_key("https://api.openai.com/v1", {"OPENAI_API_KEY": "a", "HF_TOKEN": "b"})
    'a'
    >>> find_key("http://localhost:8000/v1", {"OPENAI_API_KEY": "a", "HF_TOKEN": "b"}) is None
    True
    """
    host = urlsplit(url).hostname or ""
    house = [name for name, hosts in HOUSES.items() if f".{host}".endswith(hosts)]
    keys = (environment.get(name, "").strip() for name in ("MEDVQA_JUDGE_KEY", *house))
    return next(filter(None, keys), None)


def read_verdict(reply: str, choices: Sequence[str]) -> Verdict | None:
    """The verdict of a reply, or None if it is not beyond doubt; in time linear in the reply.

    The reply is one JSON object, with anything around it (a code fence, a sentence, thinking that
    ends in </think>), whose "verdict" is one of `choices` as text or number, in any case.

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
    """The object of these pairs. Raises ValueError where a name is there twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to be left alone; 0 where it does not say."""
    text = headers.get("retry-after", "")
    try:
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _shown(url: str) -> str:
    """The address without user, password and query, which may hold secrets. Raises JudgeError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise JudgeError(f"judge {url}: {error}; give one as http://localhost:8000/v1") from None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
