"""A run that is cut and goes on is the unbroken one, to the bit: in one process, tiny model."""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grpo.optim import adamw
from grpo.run import atomic as folders
from grpo.run.checkpoint import (
    Point,
    checkpoints,
    cut_back,
    newest,
    opened,
    restore,
)
from grpo.run.interrupt import Halted
from grpo.run.metrics_log import history
from grpo.settings.errors import SettingsError, UsageError
from models.open_policy import load_policy
from tests.conftest import randomise
from tests.grpo.cases import config
from tests.grpo.run.cut_runs import KINDS, LONG, STEPS, go, metrics, recorder, state_files, steps_of


@pytest.mark.parametrize(
    ("kind", "cuts"),
    [
        pytest.param("mu 3, reference", [2], id="mu 3, reference, after step 2"),
        *(pytest.param(k, range(1, STEPS), id=k, marks=pytest.mark.slow) for k in KINDS),
    ],
)
def test_a_run_that_goes_on_after_any_step_is_the_unbroken_run_to_the_bit(
    fresh, tmp_path, kind, cuts
):
    """NeMo-RL#108, ms-swift#6049, trl#3148: order, random numbers or learning rate diverged."""
    c = config(**LONG, **KINDS[kind])
    whole = tmp_path / "whole"
    ids = go(c, whole, fresh())
    for last in cuts:
        run = tmp_path / f"cut-{last}"

        def end(step, last=last) -> None:
            if step.metrics["step"] == last + 1:
                raise UsageError("the disk is full")

        with pytest.raises(Halted):
            go(c, run, fresh(), end)  # ends in the midst of step last + 1: it has moved
        assert newest(run).step == last

        assert go(c, run, fresh()) == ids[last:]
        assert metrics(run) == metrics(whole)
        assert state_files(run) == state_files(whole)
    assert len({str(step) for step in metrics(whole)}) == STEPS
    if kind == "redrawn":
        assert any(float(step["groups_redrawn"]) > 0 for step in metrics(whole))


@pytest.mark.slow
def test_the_reference_is_the_adapter_that_the_run_began_with(fresh, tmp_path):
    c = config(**LONG, kl_coef=0.04)
    begun = tmp_path / "begun"
    randomise(fresh()).save(begun)
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(c, whole, fresh(adapter=begun))
    go(c, run, fresh(adapter=begun))
    for late in checkpoints(run)[3:]:
        folders.remove_folder(late)
    go(c, run, fresh(adapter=begun))

    assert metrics(run) == metrics(whole)
    assert metrics(run)[0]["kl"] == "0.0"
    assert float(metrics(run)[-1]["kl"]) > 0
    assert state_files(run) == state_files(whole)


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory) -> Path:
    """A run of 5 steps, with a checkpoint of each. Read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    c = config(**LONG, method="sft", out=str(folder))
    go(c, folder, load_policy(str(tiny_folder), device="cpu"))
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of that run, to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    "file", ["adapter/adapter_model.safetensors", "optimizer.safetensors", "state.json"]
)
@pytest.mark.parametrize("harm", ["a bit", "cut", "gone", "more"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, capsys, file, harm):
    place = checkpoints(run)[-1] / file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "gone":
        place.unlink()
    elif harm == "more":
        place.with_name("more").write_text("")
    else:
        place.write_bytes(content if harm == "a bit" else content[:-1])
    assert newest(run).step == STEPS - 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "checkpoints/step-000005: damaged: " in said
    assert said.endswith("is not what SHA256SUMS says; trying the one before")


def test_where_none_is_whole_that_is_said_and_nothing_is_started_afresh(run):
    for folder in checkpoints(run):
        (folder / "SHA256SUMS").unlink()
    with pytest.raises(UsageError, match="all 5 checkpoints are damaged"):
        newest(run)


def test_a_checkpoint_is_no_use_without_the_steps_it_counts_on(run, capsys):
    size = opened(checkpoints(run)[2]).metrics_bytes
    with (run / "metrics.jsonl").open("r+b") as file:
        file.truncate(size + 5)
    assert newest(run).step == 3
    assert capsys.readouterr().err.count("metrics.jsonl has lost lines") == 2


def test_a_line_of_nul_bytes_is_a_step_that_is_lost(run, capsys):
    file = run / "metrics.jsonl"
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines, bytes(len(last) - 1), b"\n"]))  # as a power cut leaves it
    assert newest(run).step == STEPS - 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "step-000005: damaged: metrics.jsonl has lost lines that it counts on;" in said


def test_moments_are_kept_in_float32_by_name_and_nothing_is_pickled(run, fresh):
    policy = fresh()
    tensors = load_file(checkpoints(run)[-1] / "optimizer.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    names = {f"{m}.{n}" for n in policy.names for m in ("exp_avg", "exp_avg_sq", "step")}
    assert tensors.keys() == names
    assert {int(t) for n, t in tensors.items() if n.startswith("step.")} == {STEPS}
    kinds = {f.suffix for f in run.rglob("*") if f.is_file()}
    assert kinds == {".safetensors", ".json", ".jsonl", ""}


def test_the_last_ones_are_kept_and_what_a_kill_left_is_swept_away(fresh, tmp_path):
    c, run = config(**LONG | {"keep_checkpoints": 2}, method="sft"), tmp_path / "run"
    for rest in (".step-000001.part", ".step-000001.old"):
        (run / "checkpoints" / rest / "adapter").mkdir(parents=True)
    go(c, run, fresh())
    there = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert there == ["step-000004", "step-000005"]


def test_what_cannot_be_written_leaves_the_checkpoint_before_and_one_line(fresh, tmp_path):
    c, run, whole = config(**LONG, method="sft"), tmp_path / "run", tmp_path / "whole"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step) -> None:
        if step.metrics["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as a full disk, of one file

    try:
        with pytest.raises(Halted, match=r"step-000003: cannot be written \(.*\); make room"):
            go(c, run, fresh(), fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    there = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert there == ["step-000001", "step-000002"]
    go(c, whole, fresh())
    go(c, run, fresh())
    assert metrics(run) == metrics(whole)
    assert state_files(run) == state_files(whole)


@pytest.mark.parametrize(("error", "raised"), [(UsageError, Halted), (SettingsError,) * 2])
def test_an_end_between_two_steps_is_saved_where_it_is(fresh, tmp_path, error, raised):
    """A judge that is gone is met before anything has moved: its step is lost, none before it.
    What needs other settings is not told to go on with the same."""
    c, run = config(**LONG | {"save_every": 0}, method="sft"), tmp_path / "run"
    policy = fresh()
    optimizer = adamw(policy.parameters(), c)

    def judged():
        steps = steps_of(c, policy, optimizer, 0)
        yield next(steps)
        yield next(steps)
        raise error("the judge is gone")

    run.mkdir()

    def recorded() -> None:
        with recorder(run, policy, optimizer, c) as record:
            for step in judged():
                record.record(step)

    with pytest.raises(raised, match="the judge is gone"):
        recorded()
    assert newest(run).step == len(history(run)) == 2
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_an_end_in_the_midst_of_a_step_is_not_saved_as_the_step_before(fresh, tmp_path):
    c, run = config(**LONG | {"save_every": 0}, method="sft"), tmp_path / "run"

    def end(step) -> None:
        if step.metrics["step"] == 3:
            raise ZeroDivisionError  # the weights have moved, and no line says so

    with pytest.raises(ZeroDivisionError):
        go(c, run, fresh(), end)
    assert len(history(run)) == 2
    assert newest(run).folder is None


def test_cutting_back_takes_away_all_that_is_about_later_steps_and_can_be_cut_itself(run):
    for made in ("trace/step-000002.json", "trace/step-000003.json", "trace/step-000004.json.part"):
        (run / made).parent.mkdir(exist_ok=True)
        (run / made).write_text("")
    for answers in ("base-MRI-reason", "trained-MRI-reason", "measures-trained-reason-MRI"):
        for folder in (run / "predictions", run / "other" / "vqa-rad" / "predictions"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{answers}.jsonl").write_text("")
    for table in ("summary.json", "evaluation.json", "other/vqa-rad/evaluation.json"):
        (run / table).write_text("{}")
    (run / "adapter").mkdir(exist_ok=True)
    before = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        cut_back(opened(checkpoints(run)[1]), STEPS)
        assert newest(run).step == 2
        lines = (run / "metrics.jsonl").read_bytes()
        assert lines == b"".join(before.splitlines(keepends=True)[:2])
        assert [p.name for p in (run / "trace").iterdir()] == ["step-000002.json"]
        assert {p.name for p in run.rglob("predictions/*")} == {"base-MRI-reason.jsonl"}
        assert not [*run.glob("**/summary.json"), *run.glob("**/evaluation.json")]
        assert not (run / "adapter").exists()
    cut_back(Point(run), STEPS)
    assert checkpoints(run) == []
    assert (run / "metrics.jsonl").read_bytes() == b""


def test_answers_of_the_last_step_stay_when_only_scoring_is_left(run):
    (run / "predictions").mkdir()
    (run / "predictions" / "trained-MRI-reason.jsonl").write_text("")
    cut_back(newest(run), STEPS)
    assert list((run / "predictions").iterdir())


def test_a_run_goes_on_from_another_start_under_no_flag(run, fresh):
    optimizer = adamw((policy := fresh()).parameters(), config())
    with pytest.raises(UsageError, match="the training questions, or the adapter of --init"):
        restore(newest(run), policy, optimizer, "another origin")
