"""Steps in storages that never move, replayed from a recording, draw what the plain loop draws."""

from functools import partial

import pytest
import torch
from torch import nn

from grpo.settings.errors import UsageError
from models.distribution import law
from models.layers import Layers
from models.linear import Linear
from models.sampling import cuda_graph as captured
from models.sampling import decode_step as static
from models.sampling.cuda_graph import GraphSampler
from models.sampling.decode_step import Buffers, Weights
from models.sampling.sampler import sample_eagerly
from tests.conftest import randomise
from tests.models import plain
from tests.models.sampling.recorded import Called, HostWaits, Recorded, address

LENGTH, GROUP = 24, 6


def draw(policy, prompts, temperature=1.0, group_size=GROUP, length=LENGTH):
    size = 1 if temperature == 0 else group_size
    keys = [(0, 42, 1, i, 0) for i in range(len(prompts))]
    return plain.rollout_with_logprobs(policy, prompts, size, keys, temperature, length)


def rows(rollout):
    return [row[:n].tolist() for row, n in zip(rollout.tokens, rollout.lengths, strict=True)]


def plainly(policy, prompts, **how):
    """By the loop of models/sampling/sampler.py."""
    kept, policy.sampler = policy.sampler, sample_eagerly
    try:
        return draw(policy, prompts, **how)
    finally:
        policy.sampler = kept


def assert_draws_as_the_plain_loop(policy, prompts, **how):
    """Also returns the completions. Equal unless a uniform lies within rounding of an edge, which
    none of these does."""
    expected, found = plainly(policy, prompts, **how), draw(policy, prompts, **how)
    assert rows(found) == rows(expected)
    assert torch.equal(found.stopped, expected.stopped)
    for one, other, n in zip(found.logprobs, expected.logprobs, expected.lengths, strict=True):
        torch.testing.assert_close(one[:n], other[:n], atol=1e-4, rtol=0)
    return rows(found)


@pytest.fixture
def record():
    return Recorded.new()


@pytest.fixture
def policy(fresh, record, monkeypatch):
    """One token in six ends a row, so rows finish at all times; steps are recorded."""
    policy = randomise(fresh())
    stops = frozenset(range(0, len(policy.chat.tokenizer), 6))
    monkeypatch.setattr(policy.chat, "eos", stops | policy.chat.eos)
    policy.sampler = GraphSampler(record)
    return policy


@pytest.fixture
def prompts(policy):
    return policy.encode(plain.QUESTIONS)


@pytest.mark.parametrize("way", [pytest.param(Called, marks=pytest.mark.slow), Recorded.new()])
@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7, 0.0])
def test_it_draws_what_the_plain_loop_draws(policy, prompts, temperature, way):
    policy.sampler = GraphSampler(way)
    assert_draws_as_the_plain_loop(policy, prompts, temperature=temperature)


def test_windows_that_end_early_or_evenly_draw_the_same(policy, prompts):
    longest = {}
    for length in (1, 7, 9, 16):
        drawn = assert_draws_as_the_plain_loop(policy, prompts, length=length)
        longest[length] = max(map(len, drawn))
    assert longest == {length: length for length in longest}


def test_rows_that_finish_leave_a_smaller_graph_to_go_on(policy, prompts, record):
    drawn = assert_draws_as_the_plain_loop(policy, prompts)
    live = [sum(len(row) > start for row in drawn) for start in range(0, LENGTH, static.WINDOW)]
    sizes = {min(n for n in (18, 9, 5, 3, 2, 1) if n >= alive) for alive in live}
    assert {kind[0] for kind in policy.sampler.graphs} == sizes
    assert len(sizes) == len(record.made) == 3
    runs = len(record.made) + sum(graph.replays for graph in record.made)
    assert runs == LENGTH  # a recording's first run is a step, and capturing is none


def test_weights_that_change_in_place_are_seen_without_a_new_graph(policy, prompts, record):
    seen = []
    for step in range(4):
        seen.append(assert_draws_as_the_plain_loop(policy, prompts))
        if step == 0:
            recorded = set(policy.sampler.graphs)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.5)
    assert len({str(drawn) for drawn in seen}) == 4
    assert recorded
    assert len(record.made) == len(policy.sampler.graphs)  # one a kind: none was recorded again


def test_an_adapter_that_is_loaded_is_seen(policy, prompts, record, fresh, tmp_path):
    first = assert_draws_as_the_plain_loop(policy, prompts)
    randomise(fresh(), seed=8, scale=0.2).save(tmp_path)
    policy.load(tmp_path)
    assert assert_draws_as_the_plain_loop(policy, prompts) != first
    assert len(record.made) == len(policy.sampler.graphs)


def test_no_graph_of_the_adapter_serves_the_base_or_another_adapter(fresh, policy, tmp_path):
    randomise(policy, scale=0.1).save(tmp_path)
    both = fresh(adapter=tmp_path)
    both.chat, both.sampler = policy.chat, policy.sampler
    randomise(both, seed=8, scale=0.2)  # its reference stays what was loaded
    prompts = both.encode(plain.QUESTIONS)
    seen = [assert_draws_as_the_plain_loop(both, prompts)]
    with both.reference():
        seen.append(assert_draws_as_the_plain_loop(both, prompts))
    with both.base():
        seen.append(assert_draws_as_the_plain_loop(both, prompts))
    seen.append(assert_draws_as_the_plain_loop(both, prompts))
    assert seen[3] == seen[0]
    assert len({str(drawn) for drawn in seen}) == 3


def test_a_tensor_that_moves_is_not_replayed_from_where_it_was(policy, prompts):
    drawn, failed = [rows(draw(policy, prompts))], []
    for name in (
        "embed_tokens.weight", "norm.weight", "layers.0.self_attn.q_proj.base_layer.weight",
        "layers.1.self_attn.k_proj.base_layer.bias", "layers.0.mlp.up_proj.lora_B.default.weight",
    ):  # fmt: skip
        moved = policy.language_model.get_parameter(name)
        moved.data = moved.data.flip(0).mul(2)
        drawn.append(rows(draw(policy, prompts)))
        if drawn[-1] == drawn[-2] or drawn[-1] != rows(plainly(policy, prompts)):
            failed.append(name)
    assert failed == []


def test_all_that_a_step_reads_is_its_own_or_compared(policy, prompts, record):
    draw(policy, prompts)
    kept = policy.sampler
    own = {address(tensor) for tensor in vars(kept.buffers).values()}
    own |= {address(tensor) for layer in kept.weights.layers.layers for linear in layer
            if isinstance(linear, Linear) for tensor in (linear.a, linear.b)}  # fmt: skip
    assert not own & {address(tensor) for tensor in policy.parameters()}
    compared = {place[0] for place in kept.graph_key}
    for graph in record.made:
        assert graph.reads() <= own | compared
        assert len(graph.reads() & compared) == 2 * 7 + 3  # of two layers


def test_lora_in_another_dtype_than_its_base_is_cast_anew(fresh, record):
    policy = randomise(fresh(dtype="bfloat16"))
    prompts = policy.encode(plain.QUESTIONS)
    replayed, called, seen = GraphSampler(record), GraphSampler(Called), []
    for _ in range(2):
        policy.sampler = replayed
        seen.append(rows(draw(policy, prompts)))
        policy.sampler = called
        assert rows(draw(policy, prompts)) == seen[-1]
        randomise(policy, seed=9, scale=0.2)
    assert seen[0] != seen[1]


def test_a_smaller_rollout_uses_what_is_there_and_a_larger_one_does_not(policy, prompts):
    assert_draws_as_the_plain_loop(policy, prompts)
    first = policy.sampler.buffers
    assert_draws_as_the_plain_loop(policy, prompts[1:], group_size=4)
    assert policy.sampler.buffers is first
    assert_draws_as_the_plain_loop(policy, prompts, group_size=7)
    more_rows = policy.sampler.buffers
    assert more_rows is not first
    assert_draws_as_the_plain_loop(policy, prompts, group_size=2, length=150)
    assert policy.sampler.buffers.cache.shape[4] > more_rows.cache.shape[4]


def test_garbage_of_an_old_rollout_changes_nothing(policy, prompts):
    draw(policy, prompts)
    with torch.inference_mode():
        for name in ("cache", "mask", "hidden", "drawn"):
            getattr(policy.sampler.buffers, name).fill_(torch.nan)
    assert_draws_as_the_plain_loop(policy, prompts[1:])


@pytest.mark.parametrize("place", [0, 3, 11])
def test_a_question_whose_logits_are_not_finite_is_named(policy, prompts, monkeypatch, place):
    def law_of(logits, *rest):
        logits = law(logits, *rest)
        logits[place:].fill_(torch.nan)
        return logits

    monkeypatch.setattr(static, "law", law_of)
    name = ("one", "none")[place // GROUP]
    with pytest.raises(UsageError, match=f"example {name}: the model's logits are not finite"):
        draw(policy, prompts)
    assert policy.sampler.buffers is None


def test_what_is_drawn_after_the_end_of_a_row_is_no_error(policy, prompts, monkeypatch):
    expected = plainly(policy, prompts, length=static.WINDOW)
    ends, steps = expected.lengths, []

    def law_of(logits, *rest):
        steps.append(None)
        logits = law(logits, *rest)
        logits[len(steps) > ends] = torch.nan
        return logits

    monkeypatch.setattr(static, "law", law_of)
    policy.sampler = GraphSampler(Called)
    assert rows(draw(policy, prompts, length=static.WINDOW)) == rows(expected)
    assert ends.min() < static.WINDOW - 2


@pytest.mark.parametrize("most", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 9))])
def test_memory_that_runs_out_changes_no_token(policy, prompts, monkeypatch, most):
    expected, make, tried = rows(plainly(policy, prompts)), Buffers.make, []

    def small(layers, rows, *rest):
        tried.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(layers, rows, *rest)

    monkeypatch.setattr(Buffers, "make", small)
    assert rows(draw(policy, prompts)) == expected
    assert max(tried) > most >= min(tried)


def test_a_rollout_that_breaks_off_leaves_nothing_behind(policy, prompts, monkeypatch):
    draw(policy, prompts)

    def full(*rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(captured, "prefill", full)
        with pytest.raises(UsageError, match="out of memory with one completion"):
            draw(policy, prompts)
    assert policy.sampler.buffers is None
    assert not policy.sampler.graphs
    assert_draws_as_the_plain_loop(policy, prompts)


def test_a_step_looks_at_no_value(fresh, monkeypatch):
    """Tensors without any: whatever asked for one would fail, in whatever operation."""
    policy = fresh()
    model = policy.language_model.to("meta")
    like = torch.empty(1, model.config.hidden_size, device="meta")
    head, banned = policy.head._replace(weight=model.embed_tokens.weight), policy.banned.to("meta")
    weights = Weights(Layers(model), model.embed_tokens.weight, head, banned)
    with torch.inference_mode():
        at = Buffers.make(weights.layers, 8, 128, like)
        for temperature in (1.0, 0.0):
            static.step(at.first(4), weights, temperature)
        draw_and_look = static.draw

        def looking(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert bool((tensors[0] > 0).any())
            return draw_and_look(*tensors)

        monkeypatch.setattr(static, "draw", looking)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            static.step(at, weights, 1.0)


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x[x > 0], torch.nonzero,
     lambda x: x.new_zeros(3).masked_select(x > 0), lambda x: torch.tensor([1.0]) + x,
     lambda x: torch.equal(x, x), lambda x: x.index_put_((x > 0,), x.sum())],
)  # fmt: skip
def test_the_stand_in_refuses_what_a_capture_refuses(record, wait):
    with pytest.raises(HostWaits):
        record(partial(wait, torch.ones(3)), torch.device("cpu"), None)


def test_the_stand_in_runs_memory_and_not_python(record):
    x, y = torch.zeros(2), nn.Parameter(torch.ones(2), requires_grad=False)
    graph = record(lambda: x.add_(y * 2), torch.device("cpu"), None)
    assert x.tolist() == [2, 2]  # once, and recording executes nothing
    y.mul_(5)
    graph.replay()
    assert x.tolist() == [12, 12]
    y.data = torch.zeros(2)  # which a graph cannot know
    graph.replay()
    assert x.tolist() == [22, 22]
