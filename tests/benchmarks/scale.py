"""Full GRPO steps at the size of Qwen2-VL-2B, by train.py itself, on a real image and question.

    MEDVQA_DATA=... nice -n 19 python tests/benchmarks/scale.py       15 minutes on 2 cores, 12 GB
    MEDVQA_DATA=... python tests/benchmarks/scale.py --device cuda    a GPU, of which 40 GB are used

The model has its true shapes, its true 151,936 rows and random weights; MEDVQA_DATA holds its
tokenizer (qwen2vl_tokenizer/) and the question (omnimedvqa/). The image is stretched to 896 x 448,
which is 512 visual tokens, the most that the recipe lets through. Random weights draw an end of
sequence once in 76,000 tokens, so completions are of full length, as `tokens` of the results show;
all rewards of a group are equal, and with a KL term its passes run nonetheless.
Seconds are those of the run's own metrics.jsonl, medians without its first step, in which the image
goes through the tower. A token step of decoding is what a rollout of L tokens takes more than one
of 1 token (a second run, without a KL term and so without passes), over L - 1; its floor is the
bytes that it must read (counts.py) at the rate of a copy or sum, measured just before.
Writes tests/benchmarks/results/scale-cpu.json or scale-cuda.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLConfig

import data.load
from models.chat import Chat
from models.lora import R
from tests.benchmarks import counts
from tests.benchmarks.counts import Work
from tests.benchmarks.floor import RESULTS, bandwidth
from tests.benchmarks.memory import make_model

ROOT = Path(__file__).parents[2]
SIDES = (896, 448)
CAP, MEMORY = 40_000_000_000, 12 << 10  # of a GPU in bytes, of the process in MB
FIXED = "--recipe medvlm-r1 --modality MRI --data-seed 0 --prompts-per-step 1 --train-size 1"
FIXED += " --val-size 0 --eval-size 0 --cache none --trace-steps 0 --save-every 0 --dtype bfloat16"
PHASES = ("rollout", "reference", "update", "step")
PIXELS = 28**2  # of a visual token
DOUBLINGS = 8


class Run(NamedTuple):
    """A run of train.py: its metrics, a step each, and what it said on stderr."""

    steps: list[dict[str, float]]
    said: str

    @property
    def fits(self) -> bool:
        """Whether it went to its end, and no pass had to be done again in halves."""
        whole = all(step["memory/cuts"] == 0 for step in self.steps)
        return bool(self.steps) and whole and "out of memory" not in self.said


class Settings(NamedTuple):
    """What a run is made with, beside FIXED."""

    model: str
    data: str
    device: str
    threads: int
    group_size: int
    length: int
    steps: int
    checkpointing: bool = True
    beta: float = 0.04

    def words(self) -> list[str]:
        pairs = {
            "model": self.model,
            "data": self.data,
            "device": self.device,
            "threads": self.threads,
            "group-size": self.group_size,
            "max-completion-length": self.length,
            "gradient-checkpointing": "on" if self.checkpointing else "off",
            "steps": self.steps,
            "kl-coef": self.beta,
            "memory-limit": f"{MEMORY}MiB" if self.device == "cpu" else f"{CAP // 10**6}MB",
        }
        return FIXED.split() + [
            str(w) for name, value in pairs.items() for w in (f"--{name}", value)
        ]


def make_question(folder: Path, place: Path) -> str:
    """A data set of one real question, its image stretched."""
    (example,) = data.load.load(f"omnimedvqa:{place}", "MRI", split="train", size=1, seed=0)
    example.images[0].open().resize(SIDES, Image.Resampling.BICUBIC).save(folder / "image.png")
    row = {"image": "image.png", "modality": "MRI", "split": "train"}
    row |= {"question": example.question, "answer": example.answer}
    row |= {"options": list(example.options)}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    return f"jsonl:{folder / 'data.jsonl'}"


def run(settings: Settings) -> Run:
    """train.py to its end, in a process of its own; on a GPU, one that may have CAP bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [*settings.words(), "--out", str(out)]
        program = [str(ROOT / "train.py")]
        if settings.device != "cpu":
            program = [__file__, "--capped"]
        done = subprocess.run([sys.executable, *program, *words], capture_output=True, text=True)
        file = out / "metrics.jsonl"
        lines = file.read_text().splitlines() if done.returncode == 0 else []
    return Run([json.loads(line) for line in lines], done.stderr)


def capped(words: Sequence[str]) -> None:
    """train.py with no more than CAP bytes of the GPU. Not run yet: no GPU was there."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
    import train

    train.main(words)


def summary(settings: Settings) -> dict[str, Any]:
    """The figures of a run and, if it went well, those of decoding."""
    found: dict[str, Any] = settings._asdict()
    del found["model"], found["data"]
    long = run(settings)
    if not long.steps:
        return found | {"failed": long.said.strip().splitlines()[-1:]}
    timed = long.steps[1:] or long.steps
    seconds = {name: median(step[f"time/{name}"] for step in timed) for name in PHASES}
    length = median(step["completions/mean_length"] for step in timed)
    tokens = settings.group_size * length
    found |= {
        "seconds": seconds,
        "first_step_s": long.steps[0]["time/step"],
        "tokens": length,
        "tokens_s_of_rollout": tokens / seconds["rollout"],
        "tokens_s_of_step": tokens / seconds["step"],
        "peak_mb": long.steps[-1]["memory/peak_mb"],
        "fits": long.fits,
    }
    short = run(settings._replace(length=1, beta=0.0, steps=2))
    if short.steps and settings.length > 1:
        prefill = short.steps[-1]["time/rollout"]
        a_step = (seconds["rollout"] - prefill) / (settings.length - 1)
        found |= {"prefill_s": prefill, "token_step_ms": 1e3 * a_step}
    return found


def floor_ms(settings: Settings, prompt: int, speed: float) -> float:
    """The fewest milliseconds of a token step: what it must read, at so many bytes a second."""
    config = Qwen2VLConfig.from_pretrained(settings.model)
    sizes = counts.sizes_of(config, R, torch.bfloat16.itemsize)
    work = Work(1, prompt, settings.group_size, settings.length)
    return 1e3 * counts.decode(sizes, work).bytes / (settings.length - 1) / speed


def prompt_tokens(settings: Settings) -> int:
    """Of the question, those of its image among them."""
    (example,) = data.load.load(settings.data, "MRI", split="train", size=1, seed=0)
    chat = Chat(AutoTokenizer.from_pretrained(settings.model))
    ids, _ = chat.encode(example.prompt, [SIDES[0] * SIDES[1] // PIXELS])
    return len(ids)


def largest(settings: Settings, name: str) -> int:
    """The largest of this setting, doubled from its value, with which a step fits; 0: not even it.
    Not run yet: no GPU was there."""
    fitting, value = 0, getattr(settings, name)
    for _ in range(DOUBLINGS):
        if not run(settings._replace(steps=1, **{name: value})).fits:
            break
        fitting, value = value, 2 * value
    return fitting


def on_cpu(settings: Settings) -> Iterator[dict[str, Any]]:
    yield summary(settings)


def on_cuda(settings: Settings) -> Iterator[dict[str, Any]]:
    """Steps of 256 and 512 new tokens with and without checkpointing, and the most that fits in
    CAP bytes. Never run where this was written: no GPU was there."""
    for length in (256, 512):
        for on in (True, False):
            changed = settings._replace(length=length, checkpointing=on)
            most = {f"largest_{name}": largest(changed, name) for name in ("group_size", "length")}
            yield summary(changed) | most


def main() -> None:
    if sys.argv[1:2] == ["--capped"]:
        capped(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="2B", help="29M: to see that all goes through")
    parser.add_argument("--models", type=Path, help="folder to keep the random model in")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-completion-length", type=int, default=32, help="on the CPU")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags = parser.parse_args()
    if flags.max_completion_length < 2:
        parser.error("--max-completion-length: 2 or more; token steps follow the first token")
    place = os.environ.get("MEDVQA_DATA")
    if not place:
        parser.error("MEDVQA_DATA is unset; it names the folder of omnimedvqa/")
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: is not on this machine")
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            model=make_model(flags.model, (flags.models or Path(folder)) / flags.model),
            data=make_question(Path(folder), Path(place) / "omnimedvqa"),
            device=flags.device,
            threads=flags.threads,
            group_size=flags.group_size,
            length=flags.max_completion_length,
            steps=flags.steps,
        )
        speed, prompt = bandwidth(torch.device(flags.device)), prompt_tokens(settings)
        record = {
            "model": flags.model,
            "machine": platform.machine(),
            "prompt_tokens": prompt,
            "gb_s": speed / 1e9,
            "memory_mb_at_most": MEMORY if flags.device == "cpu" else CAP / 2**20,
            "cases": [],
        }
        for case in (on_cpu if flags.device == "cpu" else on_cuda)(settings):
            changed = settings._replace(length=case["length"])
            record["cases"].append(case | {"token_step_floor_ms": floor_ms(changed, prompt, speed)})
            print(json.dumps(record["cases"][-1], indent=1), flush=True)
            text = json.dumps(record, indent=1) + "\n"
            (RESULTS / f"scale-{flags.device}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
