"""Every setting of a run: one frozen dataclass, one line a field.

The flags of train.py, their --help, the checks and a run's config.json are all made from these
fields, so a setting has one name everywhere. Values come in three layers, and the later one wins:
the defaults below, the recipe (grpo/settings/recipes.py), the flags that were typed.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from grpo.settings.errors import UsageError
from grpo.settings.flags import check_names, check_options, names_in, option, parse_flags, steps_in
from grpo.settings.recipes import RECIPES, TRL_NAMES, TRL_VALUES, cuda_bytes, recipe_for

ABOUT = """Train on one modality, then score it and unseen ones; or --explain one step (--page FILE:
also as a page), or (--dry-run, --memory-limit 40GB) say what memory a run takes."""
# The first word of a random key (stream, seed, step, prompt, attempt, row). Keys of different
# streams are never equal.
TRAIN_STREAM, EVALUATION_STREAM, SHUFFLE_STREAM = 0, 1, 2


def key_word(text: str) -> int:
    """Return the word of a random key that stands for a text, such as a question's id."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def user_cache() -> Path:
    """Return the folder of the user's cache for image features and fetched data. Raises UsageError
    if the user has no home, as in a container that runs under any user's number."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder.startswith("~"):
        raise UsageError("no home folder for the cache; set HOME, or use --cache FOLDER or none")
    return Path(folder) / "medvqa-grpo"


def cache_folder(name: str) -> Path | None:
    """Return the folder that `--cache` names; None if nothing is cached."""
    if name == "auto":
        return user_cache()
    return None if name == "none" else Path(name)


Method = Literal["grpo", "sft"]
Target = Literal["answer", "reasoning"]
Way = Literal["reason", "explain", "direct", "open"]
Recipe = Literal["auto", "phantom", "medvlm-r1", "rarl", "clinical"]
Loss = Literal["grpo", "dapo", "dr_grpo"]
Scaling = Literal["group", "batch", "none"]
Schedule = Literal["constant", "linear"]
Dtype = Literal["auto", "float32", "bfloat16"]
Switch = Literal["auto", "on", "off"]

_task = functools.partial(option, "what is trained")
_data = functools.partial(option, "data")
_draw = functools.partial(option, "rollout: B prompts a step, G completions of each")
_loss = functools.partial(option, "loss")
_adam = functools.partial(option, "optimizer: AdamW over the LoRA weights")
_run = functools.partial(option, "run and machine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one training run; help texts carry the papers' symbols in brackets.

    Raises UsageError for a value of the wrong type, an unknown choice, or one out of bounds.

    >>> Config(group_size=4).group_size
    4
    >>> Config(group_size=1)
    Traceback (most recent call last):
    grpo.settings.errors.UsageError: --group-size 1: a group needs at least 2 completions...
    """

    method: Method = _task("grpo", "Reinforcement (grpo) or the supervised baseline (sft).")
    sft_target: Target = _task("answer", "For sft; reasoning is privileged: grpo never sees it.")
    recipe: Recipe = _task("auto", "Named values to start from; auto looks at the machine.")
    model: str = _task("phantom", "The tiny model shipped here (phantom), a folder or a hub id.")
    init: str = _task("instruct", "Start as --model, as its base, or (sft:RUN) as a run's adapter.")
    lora_r: int = _task(16, "Rank of the LoRA matrices A and B (r).", ge=1)
    lora_alpha: int = _task(32, "Their scale: a weight moves by B A alpha / r (alpha).", ge=1)

    data: str = _data("phantom", "Data set, as NAME or NAME:PATH; the README names them.")
    prompt: Way = _data("reason", "Think, then answer; direct: answer only; open: in words.")
    diversity: str = _data("none", "Ways of asking drawn in training, as explain,direct,open.")
    shuffle_options: bool = _data(False, "Put the options in a new order whenever they are asked.")
    shuffle_answers: bool = _data(False, "A control: permute right answers in training, by --seed.")
    slices: int = _data(1, "Slices of a volume, each an image; 1: the middle.", ge=1, lt=17)
    blind: bool = _data(False, "A control: train on the questions alone, without their images.")
    pass_rates: str | None = _data(None, "The file of evaluate.py --pass-rates that --keep reads.")
    keep: str | None = _data(None, "LOW,HIGH: train on questions with such a pass rate: 0.05,0.95.")
    modality: str = _data("MRI", "Modality to train on; ALL: every one of data on disk.")
    ood: str = _data("CT,XRAY", "Unseen modalities to score at the end, or none.")
    train_size: int = _data(600, "Training questions.", ge=1)
    val_size: int = _data(100, "Validation questions, drawn from the training images.", ge=0)
    eval_size: int = _data(300, "Test questions of each modality, scored at the end.", ge=0)
    eval_every: int = _data(0, "Steps between two validations; 0 for none.", ge=0)
    strict: bool = _data(False, "Stop at rows that cannot be used, which are else left out.")

    group_size: int = _draw(8, "Completions drawn for each prompt (G).", ge=1)
    prompts_per_step: int = _draw(4, "Prompts of a step, each with its group (B).", ge=1)
    max_completion_length: int = _draw(256, "Longest completion, in tokens (max |o_i|).", ge=1)
    temperature: float = _draw(1.0, "Temperature of sampling and of scoring (T).", gt=0)
    dynamic_sampling: int = _draw(0, "Redraws of a group of equal rewards; 0 for none.", ge=0)
    reward: str = _draw("format=1,accuracy=1", "Weighted rewards (r_i); also FILE.py:FUNCTION=W.")
    overlong_cache: int | None = _draw(None, "Last tokens that overlong charges (none: 1/5).", ge=1)
    length_cap: int = _draw(100, "Words of reasoning that length rewards pay for at most.", ge=1)
    judge: str | None = _draw(None, "Judges: URL, hf:FOLDER, embed:FOLDER; a comma list.")
    judge_model: str | None = _draw(None, "The model that a --judge URL serves.")

    loss: Loss = _loss("grpo", "Mean over completions (grpo), tokens (dapo), slots (dr_grpo).")
    mask_truncated: bool = _loss(False, "Completions that were cut have no loss.")
    scale_rewards: Scaling = _loss("group", "Divide the advantage (A_i) by this std, or by none.")
    baseline: Literal["group", "none"] = _loss("group", "Subtract the group's mean, or nothing.")
    combine_rewards: Literal["sum", "normalized"] = _loss("sum", "Or normalise each first (GDPO).")
    kl_coef: float = _loss(0.04, "Weight of the KL to the reference (beta); 0: none.", ge=0)
    kl: Literal["k3", "k3-corrected"] = _loss("k3", "Estimator of the KL; corrected: times rho.")
    ratio: Literal["token", "sequence"] = _loss("token", "Ratio (rho) of a token or (GSPO) of all.")
    surrogate: Literal["clip", "cispo"] = _loss("clip", "Clip the ratio, or (cispo) the weight.")
    clip_eps: float = _loss(0.2, "The ratio is clipped at 1 - this (epsilon).", gt=0, lt=1)
    clip_eps_high: float | None = _loss(None, "And at 1 + this (none: --clip-eps).", gt=0)
    clip_delta: float | None = _loss(None, "And at this where A < 0 (delta); none: never.", gt=1)
    updates_per_rollout: int = _loss(1, "Optimizer updates on each rollout (mu).", ge=1)

    steps: int = _adam(300, "Steps: a rollout and its mu updates.", ge=1)
    learning_rate: float = _adam(1e-5, "Highest learning rate.", gt=0)
    warmup_steps: int = _adam(0, "Steps of linear warm-up to it.", ge=0)
    lr_schedule: Schedule = _adam("linear", "After warm-up: constant, or linear down to 0.")
    max_grad_norm: float = _adam(1.0, "Norm that the gradient is clipped to.", gt=0)
    max_skipped_steps: int = _adam(5, "Steps in a row without a finite gradient, to stop at.", ge=1)
    weight_decay: float = _adam(0.0, "AdamW's decoupled weight decay.", ge=0)

    seed: int = _run(42, "Seed of every random choice but the next.", ge=0, lt=2**31)
    data_seed: int = _run(42, "Seed of the split and of the questions drawn.", ge=0, lt=2**31)
    out: str | None = _run(None, "Run folder (none: a new one under runs/).")
    resume: str | None = _run(None, "Go on: auto, with what --out holds; or a run's FOLDER.")
    save_every: int = _run(10, "Steps between two checkpoints; 0: only when stopped.", ge=0)
    keep_checkpoints: int = _run(2, "Checkpoints kept, the last ones.", ge=1)
    cache: str = _run("auto", "Folder for image features; auto: in the user's cache; none: no.")
    device: str = _run("auto", "auto, cpu, cuda or cuda:N.")
    dtype: Dtype = _run("auto", "Of the base model; auto: bfloat16 on a GPU, else float32.")
    gradient_checkpointing: Switch = _run("auto", "Recompute activations to save memory.")
    cuda_graphs: Switch = _run("auto", "Replay recorded decoding steps; auto: on a GPU, if it can.")
    max_pixels: int = _run(401_408, "Larger images are shrunk to it; 784 pixels a token.", ge=784)
    threads: int = _run(0, "CPU threads; 0 for torch's own choice.", ge=0)
    trace_steps: str = _run("auto", "Steps to record token by token, as 1,2,50; 0: none; auto: 20.")
    trace_blind: bool = _run(False, "Traced steps also score completions with blank images.")
    sample_every: int | None = _run(None, "Steps between completions shown; none: 5 a run.", ge=0)
    report_to: str = _run("none", "Also to tensorboard, wandb, trackio: a comma list, or none.")
    tensorboard: bool = _run(False, "The same as --report-to tensorboard.")
    quiet: bool = _run(False, "Say nothing but errors and the last line.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.method == "grpo" and self.group_size < 2:
            problem = "a group needs at least 2 completions to compare"
            raise UsageError(f"--group-size {self.group_size}: {problem}; use --group-size 8")
        if self.eval_every and not self.val_size:
            raise UsageError(f"--eval-every {self.eval_every}: nothing to ask; use --val-size 100")
        scale = self.baseline, self.scale_rewards
        if self.combine_rewards == "normalized" and scale != ("group", "group"):
            raise UsageError("--combine-rewards normalized: leave --baseline, --scale-rewards out")
        if self.baseline == "none" and scale != ("none", "none"):
            raise UsageError("--baseline none: A_i is r_i as it is; add --scale-rewards none")
        if self.clip_delta and self.clip_delta <= 1 + (self.clip_eps_high or self.clip_eps):
            raise UsageError(f"--clip-delta {self.clip_delta}: use more than 1 + --clip-eps-high")
        named = {self.sft_target, *re.split(r"[,=\s]+", self.reward)}
        if self.shuffle_answers and (shown := named & {"findings", "reasoning", "similarity"}):
            raise UsageError(f"--shuffle-answers: {min(shown)} tells what images show; omit it")
        if not re.fullmatch("instruct|base|sft:.+", self.init):
            raise UsageError(f"--init {self.init}: use instruct, base or sft:runs/NAME")
        names_in(self.ood, "--ood ")
        names = names_in(self.diversity, "--diversity ")
        check_names("diversity", names, typing.get_args(Way), ", or none")
        steps_in(self.trace_steps, self.steps)

    @property
    def ood_modalities(self) -> tuple[str, ...]:
        """The unseen modalities: `ood` without the one trained on; () if all are trained on."""
        unseen = names_in(self.ood) if self.modality != "ALL" else ()
        return tuple(name for name in unseen if name != self.modality)

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of asking that training draws from (diversity prompting)."""
        return names_in(self.diversity) or (self.prompt,)

    @property
    def traced_steps(self) -> frozenset[int]:
        """The steps, from 1, that grpo/run/trace.py records token by token."""
        return steps_in(self.trace_steps, self.steps)

    def due(self, every: int, step: int) -> bool:
        """Whether what happens every `every` steps (0: never), and after the last, is due."""
        return every > 0 and (step % every == 0 or step == self.steps)

    @classmethod
    def from_flags(cls, argv: Sequence[str] | None = None) -> "Config":
        """Make a Config of the defaults, the recipe and the flags in `argv`; the later one wins.

        `argv` None is the command line. Raises UsageError for a bad flag; exits after --help.

        >>> Config.from_flags(["--recipe", "medvlm-r1", "--beta", "0"]).kl_coef
        0.0
        """
        given = parse_flags(cls, argv, "train.py", ABOUT, TRL_NAMES, RECIPES)
        for name, value in [*given.items()]:
            given |= TRL_VALUES.get((name, str(value).lower()), {})
        cls(**given)  # refuses a bad flag before the device is looked at
        name = given.get("recipe", "auto")
        if name == "auto":
            device = given.get("device", "auto")
            name, why = recipe_for(None if device == "cpu" else cuda_bytes(device))
            if not given.get("quiet"):
                print(f"train.py: {why}: recipe {name} (--recipe chooses)", file=sys.stderr)
        return cls(**{**RECIPES[name], **given, "recipe": name})

    def record(self) -> dict[str, Any]:
        """Return the settings as config.json has them: all of them, and those not the recipe's."""
        return {"config": vars(self), "overrides": self.overrides()}

    def overrides(self) -> dict[str, Any]:
        """Return the settings that differ from the recipe, or from the defaults without one."""
        plain = vars(Config(**RECIPES.get(self.recipe, {}), recipe=self.recipe))
        return {name: value for name, value in vars(self).items() if value != plain[name]}

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        """Read a run's config.json; absent settings take their defaults.

        Raises UsageError, which names the file, for a missing, foreign or newer one or a bad value.
        """
        try:
            values = {**json.loads(Path(path).read_text(encoding="utf-8"))["config"]}
            if unknown := sorted(values.keys() - cls.__dataclass_fields__.keys()):
                problem = f"unknown setting {unknown[0]}: another version of the program wrote it"
                raise UsageError(f"{problem}; use that version, or take the setting out")
            return cls(**values)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"{path}: no config.json of a run; name a run's folder") from None
