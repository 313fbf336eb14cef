"""Settings: three layers of values, two spellings of each flag, one line for each mistake.

A test that tries many values collects those that fail and names them all.
"""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from grpo.run.atomic import write_json
from grpo.settings import recipes
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, exit_on_usage_error
from grpo.settings.flags import flag
from grpo.settings.recipes import TRL_NAMES
from tests.programs import ROOT, Program

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# A value of every field that is neither its default nor any recipe's.
OTHER = {
    "method": "sft", "sft_target": "reasoning", "recipe": "medvlm-r1", "model": "some/where",
    "init": "sft:runs/a", "lora_r": "7", "lora_alpha": "9", "data": "omnimedvqa:here",
    "slices": "8", "modality": "CT", "ood": "MRI", "train_size": "11", "val_size": "12",
    "eval_size": "13", "eval_every": "14", "group_size": "15", "prompts_per_step": "16",
    "max_completion_length": "17", "temperature": "0.5", "dynamic_sampling": "3",
    "reward": "accuracy=2", "loss": "dr_grpo", "scale_rewards": "none", "kl_coef": "0.25",
    "clip_eps": "0.125", "clip_eps_high": "0.75", "updates_per_rollout": "5", "steps": "18",
    "learning_rate": "3e-5", "warmup_steps": "19", "lr_schedule": "constant",
    "max_grad_norm": "0.3", "weight_decay": "0.01", "seed": "20", "out": "here", "cache": "none",
    "max_skipped_steps": "7", "device": "cpu", "dtype": "float32", "gradient_checkpointing": "on",
    "max_pixels": "784", "cuda_graphs": "off", "threads": "2", "prompt": "direct",
    "data_seed": "21", "diversity": "direct,open", "length_cap": "22", "judge": "hf:judge",
    "judge_model": "expert", "trace_steps": "1,2", "sample_every": "23", "resume": "runs/a",
    "save_every": "24", "keep_checkpoints": "3", "pass_rates": "rates.jsonl", "keep": "0.1,0.9",
    "overlong_cache": "25", "baseline": "none", "kl": "k3-corrected", "clip_delta": "4.5",
    "combine_rewards": "normalized", "ratio": "sequence", "surrogate": "cispo",
    "report_to": "wandb,trackio",
}  # fmt: skip
# What else has to be typed with a value above.
WITH = {"baseline": ["--scale-rewards", "none"]}
# Flags without a value.
BARE = ["strict", "shuffle_options", "shuffle_answers", "blind", "mask_truncated", "tensorboard"]
BARE += ["trace_blind", "quiet"]


def flags(*argv: str) -> Config:
    """Return the settings of a command line, whatever machine it runs on."""
    return Config.from_flags([*argv] if "--recipe" in argv else ["--recipe", "phantom", *argv])


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the one line that `argv` is refused with."""
    with pytest.raises(SystemExit) as exit_, exit_on_usage_error("train.py"):
        pytest.fail(f"{argv} is accepted: {flags(*argv)}")
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def test_every_setting_is_a_flag_in_both_spellings() -> None:
    failed = []
    for name in [name for name in FIELDS if name not in BARE]:
        more = ["--recipe", "phantom", *WITH.get(name, [])]
        dashes = flags(*more, flag(name), OTHER[name])
        underscores = flags(*more, f"--{name}={OTHER[name]}")
        changed = getattr(dashes, name)
        as_typed = str(changed) == OTHER[name] or float(changed) == float(OTHER[name])
        if not (dashes == underscores and as_typed and changed != FIELDS[name].default):
            failed.append((name, changed))
    assert failed == []


def test_a_setting_that_is_on_or_off_is_a_flag_without_a_value() -> None:
    off = [getattr(flags(), name) for name in BARE]
    on = [getattr(flags(flag(name), "--steps", "5"), name) for name in BARE]

    assert (off, on) == ([False] * len(BARE), [True] * len(BARE))
    assert [flags(flag(name)).overrides() for name in BARE] == [{name: True} for name in BARE]


def test_the_names_of_trl_are_second_spellings() -> None:
    failed = []
    for theirs, ours in TRL_NAMES.items():
        if ours in BARE:
            assert flags(f"--{theirs}") == flags(flag(ours))
            continue
        expected = flags(flag(ours), OTHER[ours])
        spaced = flags(f"--{theirs}", OTHER[ours])
        joined = flags(f"{flag(theirs)}={OTHER[ours]}")
        if not spaced == joined == expected:
            failed.append(theirs)
    assert failed == []


def test_the_values_of_trl_are_second_spellings() -> None:
    same = {
        "--loss_type cispo": "--loss dapo --surrogate cispo",
        "--multi_objective_aggregation normalize_then_sum": "--combine-rewards normalized",
        "--multi_objective_aggregation sum_then_normalize": "--combine-rewards sum",
        "--importance_sampling_level sequence": "--ratio sequence",
        "--use_bias_correction_kl True": "--kl k3-corrected",
        "--use_bias_correction_kl=false": "--kl k3",
        "--delta 3 --epsilon_high 0.3": "--clip-delta 3 --clip-eps-high 0.3",
        "--mask_truncated_completions": "--mask-truncated",
    }
    failed = [a for a, b in same.items() if flags(*a.split()) != flags(*b.split())]
    assert failed == []


def test_underscores_in_values_survive() -> None:
    assert flags("--loss=dr_grpo", "--out", "my_run").out == "my_run"
    assert flags("--out=my_run").out == "my_run"
    assert flags("--reward=a_b.py:c_d=1").reward == "a_b.py:c_d=1"
    assert flags("--steps", "1_000").steps == 1000


def test_help_explains_every_setting_in_a_sentence_under_a_heading() -> None:
    failed = []
    for name, field in FIELDS.items():
        sentence = field.metadata["help"]
        if not (field.metadata["group"] and sentence.endswith(".") and len(sentence.split()) >= 2):
            failed.append((name, sentence))
    assert failed == []


def test_help_names_flags_headings_symbols_and_recipe_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        Config.from_flags(["--help"])
    text = " ".join(capsys.readouterr().out.split())

    assert exit_.value.code == 0
    assert all(flag(name) in text for name in [*FIELDS, *TRL_NAMES])
    assert all(field.metadata["group"] + ":" in text for field in FIELDS.values())
    for symbol in ["(G)", "(B)", "(beta)", "(epsilon)", "(mu)", "(T)", "(r_i)", "(A_i)", "|o_i|"]:
        assert symbol in text
    assert "[default 8; medvlm-r1 4]" in text


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default() -> None:
    recipe = recipes.RECIPES["medvlm-r1"]
    config = flags("--recipe", "medvlm-r1", "--group-size", "6", "--data", "phantom")

    assert (config.group_size, config.data) == (6, "phantom")
    assert config.model == recipe["model"] != Config().model
    assert config.clip_eps == Config().clip_eps
    assert config.overrides() == {"group_size": 6, "data": "phantom"}


def test_a_flag_with_the_default_value_still_wins_over_the_recipe() -> None:
    assert recipes.RECIPES["medvlm-r1"]["group_size"] != Config().group_size

    config = flags("--recipe", "medvlm-r1", "--group-size", str(Config().group_size))

    assert config.group_size == Config().group_size


def test_overrides_are_empty_for_a_recipe_as_it_stands() -> None:
    for name in recipes.RECIPES:
        assert flags("--recipe", name).overrides() == {}


def test_a_flag_given_twice_takes_the_last_value() -> None:
    assert flags("--beta", "0.5", "--kl-coef", "0").kl_coef == 0


BAD = {
    "--group-size 1": "a group needs at least 2 completions to compare; use --group-size 8",
    "--num_generations 1": "a group needs at least 2 completions to compare; use --group-size 8",
    "--group-size eight": "expected a whole number, such as 8",
    "--steps 2.5": "expected a whole number, such as 300",
    "--steps 0": "must be at least 1, such as 300",
    "--temperature 0": "must be greater than 0, such as 1.0",
    "--learning-rate nan": "expected a finite number, such as 1e-05",
    "--clip-eps 1": "must be less than 1, such as 0.2",
    "--epsilon_high 0": "must be greater than 0, such as none",
    "--kl-coef -0.1": "must be at least 0, such as 0.04",
    "--lora-r none": "expected a whole number, such as 16",
    "--loss ppo": "unknown choice; use one of grpo, dapo, dr_grpo",
    "--clip-delta 1.28 --epsilon-high 0.28": "use more than 1 + --clip-eps-high",
    "--baseline none": "A_i is r_i as it is; add --scale-rewards none",
    "--combine-rewards normalized --scale-rewards batch": "leave --baseline, --scale-rewards out",
    "--combine-rewards normalized --baseline none": "leave --baseline, --scale-rewards out",
    "--recipe best": "unknown choice; use one of auto, phantom, medvlm-r1, rarl, clinical",
    "--seed 2147483648": "must be less than 2147483648, such as 42",
    "--ood none,CT": "none and something; give the names, or none alone",
    "--init runs/a": "use instruct, base or sft:runs/NAME",
    "--diversity direct,aloud": (
        "unknown choice; use one of reason, explain, direct, open, or none"
    ),
    "--eval-every 5 --val-size 0": "nothing to ask; use --val-size 100",
    "--shuffle-answers --reward format=1,findings=1": "findings tells what images show; omit it",
    "--shuffle-answers --method sft --sft-target reasoning": (
        "reasoning tells what images show; omit it"
    ),
    "--group-sise 8": "unknown flag; did you mean --group-size?",
    "--group 8": "unknown flag; did you mean --group-size?",
    "-g 8": "unknown flag; see train.py --help",
    "8": "unknown word; see train.py --help",
    "--steps": "expected one argument; --help explains the flags",
    "--strict yes": "unknown word; see train.py --help",
    "--strict=yes": "ignored explicit argument 'yes'; --help explains the flags",
}


def test_a_bad_command_is_one_line_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    failed = []
    for command, reason in BAD.items():
        line = refused(capsys, *command.split())
        if not (line.startswith("train.py: ") and line.endswith(": " + reason)):
            failed.append((command, line))
    assert failed == []


@pytest.mark.slow
def test_a_bad_flag_ends_a_real_process_with_code_2_and_no_traceback() -> None:
    done = Program(sys.executable, str(ROOT / "train.py"), "--group-size", "1").finish()

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"train.py: --group-size 1: {BAD['--group-size 1']}\n"


def test_a_supervised_run_has_no_groups_and_needs_no_group_size() -> None:
    assert flags("--method", "sft", "--group-size", "1").group_size == 1


def test_python_values_are_held_to_the_same_rules() -> None:
    wrong = {"steps": True, "temperature": "1", "data": None, "seed": -1, "strict": 1}
    for name, value in [*wrong.items(), ("steps", 3.0)]:
        with pytest.raises(UsageError, match=f"{flag(name)} {value}: "):
            Config(**{name: value})


def test_a_whole_number_in_a_fractional_setting_becomes_a_float() -> None:
    assert type(Config(temperature=1).temperature) is float


def test_ood_modalities_leave_out_the_one_trained_on() -> None:
    assert Config().ood_modalities == ("CT", "XRAY")
    assert Config(modality="CT").ood_modalities == ("XRAY",)
    assert Config(ood="none").ood_modalities == Config(ood="NONE").ood_modalities == ()
    assert Config(ood="XRAY,CT,XRAY").ood_modalities == ("XRAY", "CT")


def test_a_saved_config_comes_back_the_same(tmp_path: Path) -> None:
    config = flags("--clip-eps-high", "0.28", "--init", "sft:runs/a", "--learning-rate", "3e-5")

    write_json(tmp_path / "config.json", config.record())
    record = json.loads((tmp_path / "config.json").read_text())

    assert Config.load(tmp_path / "config.json") == config
    assert record["overrides"] == {
        "clip_eps_high": 0.28, "init": "sft:runs/a", "learning_rate": 3e-5
    }  # fmt: skip


def test_a_foreign_or_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    damaged = {
        '{"config": {"group_sizes": 8}}': "unknown setting group_sizes: another version",
        '{"config": {"group_size": 1}}': "--group-size 1: a group needs",
        '{"config": {"steps": "300"}}': "--steps 300: expected a whole number",
        '{"config": 3}': "no config.json of a run",
        '{"confi': "no config.json of a run",
        "{}": "no config.json of a run",
    }
    for text, reason in damaged.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=reason) as error:
            Config.load(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.json: no config.json of a run"):
        Config.load(tmp_path / "nowhere.json")
