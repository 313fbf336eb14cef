"""Programs that a test starts end within a limit, with all that they have started."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests import programs
from tests.programs import Program, children, end_all

FOR_EVER = "import time\ntime.sleep(3600)\n"
# Its child leads a session of its own, as torchrun's workers do, and ignores what can be ignored.
PARENT = """
import signal, subprocess, sys
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
print(child.pid, flush=True)
"""
SIGNALS = """
import signal
for name in ("SIGTERM", "SIGQUIT", "SIGHUP"):
    assert signal.getsignal(getattr(signal, name)) == signal.SIG_DFL, name
assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
"""


def assert_gone(pid: int) -> None:
    """That a process has ended, or does so soon; a zombie has."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(1000):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} still runs")


@pytest.fixture
def parent() -> Program:
    """A program that sleeps for ever, and has started another."""
    program = Program(sys.executable, "-c", PARENT + FOR_EVER)
    program.wait_for(lambda: program.out.endswith("\n"))
    return program


@pytest.mark.parametrize("wait", ["finish", "condition"])
def test_a_program_that_hangs_fails_the_test_and_leaves_no_process(parent, wait):
    pids = [parent.pid, *children(parent.pid)]
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"did not .* in 0.5 s"):
        parent.finish(0.5) if wait == "finish" else parent.wait_for(lambda: False, 0.5)
    assert time.monotonic() - start < 60
    assert len(pids) == 2
    for pid in pids:
        assert_gone(pid)


@pytest.mark.slow
def test_what_is_left_after_a_test_is_ended_but_for_what_was_there_before(parent):
    later = Program(sys.executable, "-c", FOR_EVER)
    end_all(kept=[parent])
    assert_gone(later.pid)
    assert parent.poll() is None
    assert parent in programs.running
    assert later not in programs.running


@pytest.mark.slow
def test_a_forked_program_that_hangs_fails_the_test_and_leaves_no_process(tmp_path):
    (tmp_path / "hangs.py").write_text(
        f"import sys\nsys.stdout = open('pid', 'w')\n{PARENT}{FOR_EVER}"
    )
    with pytest.raises(pytest.fail.Exception, match="did not end in 5 s"):
        programs.run(str(tmp_path / "hangs.py"), where=tmp_path, limit=5)
    assert_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_what_a_program_leaves_behind_in_its_group_is_ended():
    done = Program(sys.executable, "-c", PARENT.replace("start_new_session=True", "")).finish(60)
    assert done.returncode == 0, done.stderr
    assert_gone(int(done.stdout))


@pytest.mark.slow
def test_a_program_that_ends_before_its_condition_fails_the_test_with_its_words():
    program = Program(sys.executable, "-c", "import sys; sys.exit('because')")
    with pytest.raises(pytest.fail.Exception, match="ended with 1, and wrote:\nbecause"):
        program.wait_for(lambda: False, 60)


@pytest.mark.slow
def test_a_program_hears_the_signals_that_the_tests_ignore():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        done = Program(sys.executable, "-c", SIGNALS).finish(60)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (done.returncode, done.stderr) == (0, "")
