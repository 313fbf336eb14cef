"""train.py that is stopped by real signals, errors and users, and goes on."""

import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

import train
from grpo.run.atomic import write_json
from grpo.run.checkpoint import checkpoints, newest
from grpo.run.interrupt import AT_ONCE, Stop
from grpo.run.metrics_log import history
from grpo.run.resume import going_on, starting_point
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, exit_on_usage_error
from tests.programs import Program
from tests.resuming import SHORT, differences, lines, started

FINISHING = "finishing this step, then saving; again to stop at once"


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def whole(where: Path) -> Path:
    """A run that nothing has stopped. Read only."""
    said = ended(started([*SHORT, "--out", "whole"], where), 0)
    assert "Traceback" not in said
    return where / "whole"


def ended(program: Program, code: int) -> str:
    """What a program said on stderr until it ended with this code."""
    done = program.finish()
    assert done.returncode == code, done.stderr
    return done.stderr


def goes_on(where: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again, to its end."""
    monkeypatch.chdir(where)
    train.main([*SHORT, "--out", name, "--resume", "auto"])


@pytest.mark.slow
def test_a_run_that_is_killed_between_two_checkpoints_goes_on_to_the_bit(
    where, whole, monkeypatch, capsys
):
    program = started([*SHORT, "--out", "killed"], where)
    program.wait_for(lambda: lines(where / "killed") >= 3)
    program.kill()
    ended(program, -signal.SIGKILL)
    assert newest(where / "killed").step in (2, 4)
    goes_on(where, "killed", monkeypatch)
    assert "train.py: killed goes on after step" in capsys.readouterr().err
    assert differences(where / "killed", whole) == []


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_names_the_command(where, whole, monkeypatch):
    program = started([*SHORT, "--out", "terminated"], where)
    program.wait_for(lambda: lines(where / "terminated") >= 1)
    program.terminate()
    last = ended(program, 143).splitlines()[-1]
    run = where / "terminated"
    step = lines(run)
    assert newest(run).step == step < 6
    again = going_on([*SHORT, "--out", "terminated"], Path("terminated"))
    said = f"stopped by SIGTERM after step {step} of 6, and saved; go on with: {again}"
    assert last == f"train.py: {said}"
    monkeypatch.chdir(where)
    train.main(again.split()[2:])  # the very command
    assert differences(run, whole) == []


@pytest.mark.slow
def test_a_second_sigint_ends_at_once(where):
    """Of a step that would never end."""
    (where / "slow.py").write_text(
        "import itertools, time\ncalls = itertools.count()\n"
        "def slow(prompts, completions, **columns):\n"
        "    if next(calls) == 3:\n"
        "        open('asleep', 'w').close()\n"
        "        time.sleep(3600)\n"
        "    return [0.0] * len(completions)\n"
    )
    run = where / "interrupted"
    flags = ["--reward", "accuracy,slow.py:slow", "--save-every", "1", "--out", "interrupted"]
    program = started([*SHORT, *flags], where)
    program.wait_for((where / "asleep").exists)
    program.send_signal(signal.SIGINT)
    program.wait_for(lambda: f"train.py: {FINISHING}\n" in program.err)
    time.sleep(AT_ONCE)
    program.send_signal(signal.SIGINT)
    assert "go on with" not in ended(program, 130)
    assert newest(run).step == lines(run) == 3


@pytest.mark.slow
def test_a_sigint_that_the_parent_ignores_stays_ignored(where):
    """As of a background job of a script, which Ctrl-C is not meant for. SIGTERM still stops it."""
    run, ignoring = where / "background", ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    flags = ["--steps", "2000", "--save-every", "0", "--out", "background"]
    program = started([*SHORT, *flags], where, *ignoring)
    program.wait_for(lambda: lines(run) >= 1)
    program.send_signal(signal.SIGINT)
    later = lines(run) + 3
    program.wait_for(lambda: lines(run) >= later)
    assert FINISHING not in program.err
    program.terminate()
    said = ended(program, 143)  # before its lines are counted: it goes on until then
    assert f"stopped by SIGTERM after step {lines(run)} of 2000" in said


def test_stop_leaves_an_ignored_signal_ignored(tmp_path, monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop(tmp_path, quiet=True) as stop:
            assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN, stop._heard]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_signal_while_scoring_keeps_the_answers(where, whole, monkeypatch):
    run = where / "scoring"
    shutil.copytree(whole, run)
    for made in ("summary.json", "predictions/trained-MRI-reason.jsonl"):
        (run / made).unlink()
    base = run / "predictions" / "base-MRI-reason.jsonl"
    base.write_text("".join(base.read_text().splitlines(keepends=True)[:1]))
    program = started([*SHORT, "--out", "scoring", "--resume", "auto"], where)
    program.wait_for(lambda: base.read_text().count("\n") > 1)
    program.terminate()
    done = program.finish()
    if done.returncode:  # it may have been done already
        assert done.returncode == 143
        last = done.stderr.splitlines()[-1]
        assert "while scoring; the answers so far are kept; go on with: " in last
    goes_on(where, "scoring", monkeypatch)
    assert differences(run, whole) == []


@pytest.mark.slow
def test_what_is_finished_is_said_to_be_so_and_not_touched(where, whole, capsys, monkeypatch):
    monkeypatch.chdir(where)
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    train.main([*SHORT, "--out", "whole", "--resume", "auto"])
    assert capsys.readouterr().out == "whole: is finished. Next: python evaluate.py --run whole\n"
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


@pytest.mark.slow
def test_a_checkpoint_can_be_named_and_what_came_after_it_is_made_again(
    where, whole, monkeypatch, capsys
):
    monkeypatch.chdir(where)
    run = where / "named"
    shutil.copytree(whole, run)
    train.main([*SHORT, "--resume_from_checkpoint", "named/checkpoints/step-000004"])
    assert "Next: python evaluate.py --run named" in capsys.readouterr().out
    assert differences(run, whole) == []


@pytest.fixture
def half(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of which the end is missing, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "7"], "--seed 7: the run in run has 42; use the same, or another --out"),
        (["--learning-rate", "1"], "--learning-rate 1.0: the run in run has 0.0012"),
        (["--steps", "8"], "--steps 8: the run in run has 6"),  # its rate falls to 0 at the last
        (["--out", "other", "--resume", "run"], "--out other: --resume goes on in run"),
        (["--resume", "nowhere"], "--resume nowhere: no run there"),
        (
            ["--resume", "run/checkpoints/step-000001"],
            "damaged: [Errno 2] No such file",
        ),
    ],
)
@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_touched(half, capsys, flags, says):
    before = {file: file.stat().st_mtime_ns for file in half.rglob("*.*")}
    with pytest.raises(SystemExit) as end, exit_on_usage_error("train.py"):
        train.main([*SHORT, "--out", "run", "--resume", "auto", *flags])
    assert end.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    now = {file: file.stat().st_mtime_ns for file in half.rglob("*.*")}
    locks = {half / "train.lock", half / "evaluate.lock"}
    assert {file for file in now if now[file] != before.get(file)} <= locks
    assert before.keys() <= now.keys()


def test_auto_wants_a_folder_and_takes_an_empty_one_as_a_start(tmp_path):
    with pytest.raises(UsageError, match="--resume auto: of which run"):
        starting_point(Config(resume="auto"))
    assert starting_point(Config(resume="auto", out=str(tmp_path))).run is None


@pytest.mark.slow
def test_settings_without_a_say_may_change_and_a_constant_rate_takes_more_steps(half, monkeypatch):
    c = Config.load(half / "config.json")
    free = {"threads": 2, "quiet": True, "trace_steps": "1", "save_every": 3, "cuda_graphs": "off"}
    for change in (free, {"lr_schedule": "constant", "steps": 8}):
        made = replace(c, **change)
        kept = replace(made, steps=6)
        write_json(half / "config.json", kept.record())
        wanted = replace(made, resume="run", out=None)
        assert starting_point(wanted).step == 6


@pytest.mark.slow
def test_tensorboard_forgets_what_was_cut_back(half):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.rmtree(half)
    flags = [*SHORT, "--tensorboard", "--eval-size", "0"]
    train.main([*flags, "--out", "run"])
    train.main([*flags, "--resume", "run/checkpoints/step-000004"])
    read = EventAccumulator(str(half / "tensorboard")).Reload().Scalars("reward")
    assert [event.step for event in read] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in read] == pytest.approx([m["reward"] for m in history(half)])


@pytest.mark.slow
def test_without_a_checkpoint_a_run_starts_again_in_its_folder(half, whole, capsys):
    shutil.rmtree(half / "checkpoints")
    train.main([*SHORT, "--out", "run", "--resume", "auto"])
    assert "run goes on at its start: it has no checkpoint" in capsys.readouterr().err
    assert differences(half, whole) == []
    assert len(checkpoints(half)) == 2
