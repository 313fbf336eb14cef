"""The files and functions that one step enters on its way to backward().

    python tests/step_path.py FOLDER

Runs train.py for one step into FOLDER/run, with an empty cache in FOLDER/cache, and stops when
backward() is called. Prints two lists in the order of entry, from train.py (with what its imports
call) and from the call of grpo(), and writes them to FOLDER/path.json. Fails if backward() is
never reached.
"""

import json
import os
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--modality MRI --group-size 4 --steps 1 --prompts-per-step 2 --eval-size 0"
Places = dict[tuple[str, str], None]  # (file, function), in the order of entry


class Trace:
    """What has been entered so far."""

    def __init__(self) -> None:
        self.from_main: Places = {}
        self.from_grpo: Places = {}
        self.over = False

    def enter(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call of one of our functions. A profile function of sys."""
        code = frame.f_code
        ours = code.co_filename.startswith(str(ROOT)) and code.co_filename != __file__
        if event != "call" or self.over or not ours or code.co_name == "<module>":
            return
        place = os.path.relpath(code.co_filename, ROOT), code.co_qualname
        self.from_main[place] = None
        if place[0] == "train.py":  # it calls grpo(), which calls its `reward` in turn
            return
        if self.from_grpo or place == ("grpo/loop.py", "grpo"):
            self.from_grpo[place] = None

    def stop(self, file: Path) -> NoReturn:
        """Print and write what was entered, and end the process, its threads with it."""
        self.over = True
        found = {"from main": list(self.from_main), "from grpo": list(self.from_grpo)}
        for name, places in found.items():
            files = dict.fromkeys(file for file, _ in places)
            print(f"{name}: {len(files)} files, {len(places)} functions")
            print(*(f"    {file}: {function}" for file, function in places), sep="\n", flush=True)
        file.write_text(json.dumps(found))
        os._exit(0)


def main(folder: Path) -> None:
    path = Trace()

    def backward(*_: Any, **__: Any) -> NoReturn:
        path.stop(folder / "path.json")

    torch.Tensor.backward = torch.autograd.backward = backward
    sys.argv = ["train.py", *FLAGS.split(), "--out", str(folder / "run")]
    sys.path[0] = str(ROOT)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    # With a core to spare, threads would prepare images meanwhile, and be counted.
    torch.set_num_threads(os.cpu_count() or 1)
    threading.setprofile(path.enter)
    sys.setprofile(path.enter)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    sys.exit("backward() was never reached")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
