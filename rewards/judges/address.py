"""The address of a judge's endpoint, and the key that may be sent to it."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from rewards.judges.interface import JudgeError

# Send OPENAI_API_KEY and HF_TOKEN only to hosts of the company that they belong to.
KEY_HOSTS = {
    "OPENAI_API_KEY": (".openai.com", ".openai.azure.com"),
    "HF_TOKEN": (".huggingface.co", ".hf.co", ".hf.space", ".huggingface.cloud"),
}


def addresses(url: str) -> tuple[str, str]:
    """Return the address as messages show it, and that of chat completions. Raises JudgeError.

    Messages leave out user, password and query, which may hold secrets. The `url` may lack the end
    of the path.

    >>> addresses("http://me:secret@localhost:8000/v1")[0]
    'http://localhost:8000/v1'
    >>> addresses("http://localhost:8000")[1]
    'http://localhost:8000/v1/chat/completions'
    """
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("names no host")
    except ValueError as error:
        raise JudgeError(f"judge {url}: {error}; give one as http://localhost:8000/v1") from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        return shown, url
    path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return shown, parts._replace(path=path).geturl()


def find_key(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the key for this address: MEDVQA_JUDGE_KEY, else that of the host's company.

    >>> find_key("https://api.openai.com/v1", {"OPENAI_API_KEY": "a", "HF_TOKEN": "b"})
    'a'
    >>> find_key("http://localhost:8000/v1", {"OPENAI_API_KEY": "a", "HF_TOKEN": "b"}) is None
    True
    """
    host = urlsplit(url).hostname or ""
    names = [name for name, hosts in KEY_HOSTS.items() if f".{host}".endswith(hosts)]
    keys = (environment.get(name, "").strip() for name in ("MEDVQA_JUDGE_KEY", *names))
    return next(filter(None, keys), None)
