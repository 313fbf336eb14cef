"""The folder for what the programs would else compute or fetch again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder that the programs may fill in the user's cache: image features, fetched data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medvqa-grpo"


def cache_folder(name: str) -> Path | None:
    """The folder that `--cache` names; None: nothing is kept."""
    return {"auto": user_cache(), "none": None}.get(name, Path(name))
