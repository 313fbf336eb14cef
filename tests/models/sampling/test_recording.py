"""A step that cannot be recorded: the run goes on or ends in one line, as --cuda-graphs says."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product

import pytest
import torch

from grpo.settings.errors import SettingsError, UsageError
from models.sampling import cuda_graph
from models.sampling.cuda_graph import Graph, GraphSampler
from models.sampling.sampler import sample_eagerly
from tests.conftest import randomise
from tests.models import plain
from tests.models.sampling.recorded import Recorded

CAPTURING = "CUDA error: operation not permitted when stream is capturing\nSearch for it"
ENDED = "CUDA error: operation failed due to a previous error during capture\nSearch for it"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB\nof so much"
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
OTHERS = (
    "CUDA error: device-side assert triggered", "CUDA error: misaligned address",
    "CUDA error: unspecified launch failure", "CUDA error: an illegal instruction was encountered",
)  # fmt: skip
LENGTH, GROUP = 24, 6
BOTH = (True, False)


@pytest.fixture
def policy(fresh, monkeypatch):
    """One token in six ends a row, so that a rollout needs several graphs."""
    policy = randomise(fresh())
    stops = frozenset(range(0, len(policy.chat.tokenizer), 6))
    monkeypatch.setattr(policy.chat, "eos", stops | policy.chat.eos)
    return policy


def draw(policy, sampler):
    policy.sampler = sampler
    prompts = policy.encode(plain.QUESTIONS)
    keys = [(0, 42, 1, i, 0) for i in range(len(prompts))]
    drawn = plain.rollout_with_logprobs(policy, prompts, GROUP, keys, 1.0, LENGTH)
    return [row[:n].tolist() for row, n in zip(drawn.tokens, drawn.lengths, strict=True)]


def refusing(number: int, first: Exception, last: Exception | None = None) -> type[Recorded]:
    """A recorder that fails from its `number`th graph on; `last` is what a capture's end raises."""

    class Refusing(Recorded.new()):
        def __init__(self, step, device, beside):
            super().__init__(step, device, beside)
            if len(self.made) < number:
                return
            try:
                raise first
            finally:
                if last:
                    raise last

    return Refusing


@pytest.mark.parametrize(
    ("number", "last"),
    [
        (1, None),
        (3, RuntimeError(ENDED)),
        pytest.param(3, None, marks=pytest.mark.slow),
        pytest.param(1, RuntimeError(ENDED), marks=pytest.mark.slow),
    ],
)
def test_auto_says_so_once_and_draws_the_same_tokens_without_graphs(policy, capsys, number, last):
    expected = draw(policy, sample_eagerly)
    record = refusing(number, RuntimeError(CAPTURING), last)
    sampler = GraphSampler(record, required=False)
    assert draw(policy, sampler) == expected
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("--cuda-graphs auto: ")
    assert "(CUDA error: operation not permitted when stream is capturing); sampling" in said
    assert sampler.buffers is None
    assert not sampler.graphs

    assert draw(policy, sampler) == expected  # without a new try, and without a word
    assert len(record.made) == number
    assert capsys.readouterr().err == ""


def test_the_storages_of_the_graphs_are_free_before_the_plain_loop_begins(policy, monkeypatch):
    held = []

    def eagerly(task):
        assert [ref() for ref in held] == [None]
        return sample_eagerly(task)

    def record(step, device, beside):
        held.append(weakref.ref(sampler.buffers.cache))
        raise RuntimeError(CAPTURING)

    sampler = GraphSampler(record, required=False)
    monkeypatch.setattr(cuda_graph, "sample_eagerly", eagerly)
    gc.disable()
    try:
        draw(policy, sampler)
    finally:
        gc.enable()
    assert held


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_on_ends_the_run_in_one_line(policy, capsys, number):
    sampler = GraphSampler(refusing(number, RuntimeError(CAPTURING)), required=True)
    with pytest.raises(SettingsError) as said:
        draw(policy, sampler)
    assert str(said.value) == (
        "--cuda-graphs on: a decoding step cannot be recorded as a CUDA graph (CUDA error: "
        "operation not permitted when stream is capturing); use auto or off"
    )
    assert capsys.readouterr().err == ""
    assert sampler.buffers is None


@pytest.mark.parametrize(
    ("most", "required", "last"),
    [
        (5, True, False),
        (5, False, True),
        *(pytest.param(5, same, same, marks=pytest.mark.slow) for same in BOTH),
        *(pytest.param(1, *both, marks=pytest.mark.slow) for both in product(BOTH, BOTH)),
    ],
)
def test_memory_that_runs_out_while_recording_frees_the_graphs_and_halves(
    policy, capsys, required, last, most
):
    expected, alive, rows = draw(policy, sample_eagerly), weakref.WeakSet(), []

    class Small(Recorded.new()):
        def __init__(self, step, device, beside):
            super().__init__(step, device, beside)
            self.made.clear()  # it would keep every graph
            whole = len(sampler.buffers.hidden)
            if not rows or rows[-1] != whole:
                kept.append(len(alive))  # graphs of what did not fit
                rows.append(whole)
            alive.add(self)
            if whole > most:
                try:
                    raise torch.OutOfMemoryError(FULL)
                finally:
                    if last:
                        raise RuntimeError(ENDED)

    kept, sampler = [], GraphSampler(Small, required)
    gc.disable()
    try:
        assert draw(policy, sampler) == expected
    finally:
        gc.enable()
    assert rows[0] > most >= rows[-1]
    assert kept == [0] * len(rows)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("required", "while_recording"),
    [
        (True, False),
        (False, True),
        *(pytest.param(same, same, marks=pytest.mark.slow) for same in BOTH),
    ],
)
def test_a_lost_gpu_ends_the_run_and_nothing_is_tried_on_it(
    policy, monkeypatch, required, while_recording
):
    monkeypatch.setattr(cuda_graph, "sample_eagerly", lambda task: pytest.fail("the GPU is lost"))

    class Lost(Recorded.new()):
        def replay(self):
            raise getattr(torch, "AcceleratorError", RuntimeError)(ILLEGAL)

    record = refusing(2, RuntimeError(ILLEGAL), RuntimeError(ENDED)) if while_recording else Lost
    sampler = GraphSampler(record, required)
    with pytest.raises(UsageError, match=r"lost .*an illegal memory access.*--cuda-graphs off$"):
        draw(policy, sampler)
    assert sampler.buffers is None


def test_every_error_that_loses_a_gpu_is_known():
    for text in (ILLEGAL, *OTHERS):
        assert cuda_graph.gpu_lost(RuntimeError(text)), text
    for text in (CAPTURING, ENDED, FULL):
        assert not cuda_graph.gpu_lost(RuntimeError(text)), text


def test_the_switch_picks_the_sampler(fresh):
    assert fresh().sampler is sample_eagerly
    assert fresh(cuda_graphs="off").sampler is sample_eagerly
    policy = fresh(cuda_graphs="on")  # on a machine that has no CUDA
    with pytest.raises(SettingsError, match=r"^--cuda-graphs on: .* \(.+\); use auto or off$"):
        draw(policy, policy.sampler)


@pytest.mark.parametrize("fails", [None, RuntimeError(CAPTURING)])
def test_a_capture_that_fails_gives_back_its_stream_and_its_pool(monkeypatch, fails):
    """Of Graph itself: torch does neither. CUDA's functions are stand-ins that note their calls."""
    calls, current, runs = [], ["default"], []

    class Stream:
        def wait_stream(self, other):
            calls.append("wait")

    @contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        assert current[0] is stream
        current[0] = "left behind"
        try:
            yield
        finally:
            if fails:
                raise RuntimeError(ENDED)

    @contextmanager
    def restored(chosen):
        before, current[0] = current[0], chosen
        try:
            yield
        finally:
            current[0] = before

    def step():
        runs.append(current[0])
        if fails and len(runs) == 2:
            raise fails

    for name, stand_in in {
        "device": nullcontext, "Stream": Stream, "stream": restored, "graph": capture,
        "current_stream": Stream, "CUDAGraph": object, "graph_pool_handle": lambda: (0, 7),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        note = partial(lambda *call: calls.append(call), name)
        monkeypatch.setattr(torch._C, name, note, raising=False)
    if fails:
        with pytest.raises(RuntimeError, match="operation"):
            Graph(step, torch.device("cuda", 0), None)
    else:
        Graph(step, torch.device("cuda", 0), None)
    assert len(runs) == 2
    assert current == ["default"]
    given_back = [("_cuda_endAllocateToPool", 0, (0, 7)), ("_cuda_releasePool", 0, (0, 7))]
    assert calls == ["wait", "wait", *(given_back if fails else [])]
