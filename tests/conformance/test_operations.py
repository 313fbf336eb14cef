"""Memory, speed and operations: lines 47 to 57 of README.md's table."""

import copy
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from data.example import VQAExample
from data.training_questions import question_order
from evaluate import Scorer
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.report.page import page
from grpo.run.checkpoint import Point
from grpo.run.metrics_log import MetricsLog
from grpo.run.resume import open_run
from grpo.run.trace import write_trace
from grpo.settings.config import TRAIN_STREAM
from grpo.settings.options import Options
from models import distribution as law
from models.sampling.cuda_graph import GraphSampler
from models.sampling.sampler import sample_eagerly
from rewards.evaluation.statistics import students_t
from tests.conformance import oracle
from tests.conformance.oracle import MANY, decoded, group_of, near, users_of
from tests.conftest import randomise
from tests.grpo.cases import config, draw, reward
from tests.grpo.report.runs import make_run
from tests.models.plain import QUESTIONS, after_head, completions
from tests.models.sampling.recorded import Recorded


def saved_bytes(policy, groups) -> int:
    """Bytes that one scoring pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.nbytes)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.logprobs(groups, 1.0)[0].sum().backward()
    return sum(kept.values())


def test_trl_2927_logits_of_all_tokens_are_never_held(fresh, monkeypatch):
    """There, a longer sample came after hours, and its logits over the vocabulary did not fit.
    Here, the head runs by chunks of rows that are computed again backward, to the same numbers."""
    policy = randomise(fresh())
    groups = [group_of(policy, question, (30, 21)) for question in QUESTIONS]
    whole, _ = policy.logprobs(groups, 0.7)
    expected = oracle.gradient(policy, whole.sum())
    rows, vocabulary = [], len(policy.banned)
    monkeypatch.setattr(law, "HEAD_LOGITS", 8 * vocabulary)
    with after_head(policy, lambda logits: rows.append(len(logits)) or logits):
        chunked, _ = policy.logprobs(groups, 0.7)
        gradient = oracle.gradient(policy, chunked.sum())
    assert (max(rows), sum(rows)) == (8, 2 * 153)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)
    near(gradient, expected)
    columns = []
    pack = lambda tensor: columns.append(tensor.shape[-1:]) or tensor  # noqa: E731
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.logprobs(groups, 0.7)
    assert columns
    assert (vocabulary,) not in columns


def test_vlm_r1_36_less_memory_gives_the_same_step(fresh):
    """There, runs died on cards that the documentation had called large enough.
    Here, smaller passes and checkpointing keep far less at once, and the step stays the same."""
    kept, found = {}, {}
    for name, switch, budget in (
        ("large", "off", 10**6), ("small", "off", 1), ("checkpointed", "on", 1),
    ):  # fmt: skip
        policy = randomise(fresh(gradient_checkpointing=switch))
        policy.token_budget = budget
        (step,), seen = oracle.watched(policy, config(kl_coef=0.04))
        found[name], groups = seen[0][1], step.rollout.groups
        plan = policy.passes(groups)
        kept[name] = max(saved_bytes(policy, [groups[i] for i in part]) for part in plan)
        assert len(plan) == (1 if budget > 1 else 3)
    near(found["small"], found["large"], 1e-6)
    near(found["checkpointed"], found["large"], 1e-6)
    assert kept["checkpointed"] < 0.7 * kept["small"] < 0.5 * kept["large"]


class Products(TorchDispatchMode):
    """What products with weights cost, in multiplications; attention's have more dimensions."""

    cost = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "addmm", "linear"):
            self.cost += out.numel() * args[name == "addmm"].shape[-1]
        return out


def test_trl_3683_checkpointing_leaves_the_kv_cache_alone(fresh):
    """There, checkpointing in training mode switched the cache off and each token cost its history.
    Here, with it on, one more token costs the same late as early, and the tokens are the same."""
    said = []
    for switch in ("off", "on"):
        policy, cost = randomise(fresh(gradient_checkpointing=switch)), {}
        policy.logprobs([group_of(policy, QUESTIONS[0], (3,))], 1.0)[0].sum().backward()
        policy.chat.eos = frozenset()
        policy.encode(QUESTIONS)  # the images are seen once, now
        for length in (8, 9, 70, 71):
            with Products() as products:
                groups, _ = decoded(policy, QUESTIONS, 2, length=length)
            cost[length] = products.cost
        assert cost[9] - cost[8] == cost[71] - cost[70] > 0
        said.append(completions(groups))
    assert said[0] == said[1]


def test_easy_r1_43_each_step_says_where_its_time_went(fresh):
    """There, hours a step, and nobody could say whether sampling or training took them.
    Here, every step logs the seconds of rollout, reference and update, and they are the step."""
    steps, _ = oracle.watched(fresh(), config(steps=2, kl_coef=0.04))
    for step in steps:
        phases = [step.metrics[f"time/{name}"] for name in ("rollout", "reference", "update")]
        assert all(seconds > 0 for seconds in phases)
        assert sum(phases) <= step.metrics["time/step"] * (1 + 1e-9)
        assert step.metrics["time/step"] - sum(phases) < 0.5 * step.metrics["time/step"]


def test_nemo_rl_108_a_step_needs_no_memory_of_the_steps_before(fresh):
    """There, resumed runs went another way: data order, random state, buffers, counters.
    Here, a step's questions and samples follow from its number and the weights, in any batch."""
    c = config(steps=3)
    steps, seen = oracle.watched(fresh(), c)
    torch.manual_seed(987)
    torch.rand(10)
    again, other = oracle.watched(fresh(), c)
    assert all(map(torch.equal, *[[w for w, _ in run] for run in (seen, other)]))
    assert [s.rollout.texts for s in steps] == [s.rollout.texts for s in again]
    late = fresh()
    oracle.put(late, seen[2][0])
    expected = completions(steps[2].rollout.groups)
    for slot, example in enumerate(steps[2].rollout.examples):
        for rows in (1, 4):  # a row's numbers are its own
            key = (TRAIN_STREAM, c.seed, 2, slot, 0)
            drawn = late.sample(late.encode([example]), rows, [key], temperature=1.0,
                                max_completion_length=c.max_completion_length)  # fmt: skip
            assert completions(drawn) == expected[4 * slot : 4 * slot + rows]
    whole, resumed = fresh(), fresh()
    optimizer = adamw(whole.parameters(), c)
    for step in grpo(whole, optimizer, draw, reward, c):
        if step.metrics["step"] == 2:
            oracle.put(resumed, oracle.flat(whole))
            moments = copy.deepcopy(optimizer.state_dict())
    other_optimizer = adamw(resumed.parameters(), c)
    other_optimizer.load_state_dict(moments)
    (last,) = grpo(resumed, other_optimizer, draw, reward, c, start=2)
    assert torch.equal(oracle.flat(resumed), oracle.flat(whole))
    assert last.rollout.texts == step.rollout.texts


def test_nemo_rl_108_random_numbers_and_questions_follow_from_their_place():
    """There, resumed runs went another way: data order, random state, buffers, counters.
    Here, every random number has a key of its own, and the order of questions no state."""
    table = law.uniforms([(0, 1, 2), (0, 1, 3), (0, 2, 2)], 3, 5)
    assert len(table.unique()) == table.numel() == 45
    assert torch.equal(law.uniforms([(0, 1, 3)], 2, 5), table[3:5])
    cases = [(step, slot) for step in range(40) for slot in range(3)]
    asked = question_order(range(17), 5, 3)
    order = {case: asked(*case, 0) for case in cases}
    fresh_order = question_order(range(17), 5, 3)
    assert all(fresh_order(*case, 0) == order[case] for case in reversed(cases))
    for epoch in range(7):
        assert sorted(list(order.values())[17 * epoch : 17 * epoch + 17]) == list(range(17))


def test_open_instruct_648_seeds_are_kept_and_spread_is_reported(fresh, tmp_path):
    """There, one configuration gave results a point apart, and nobody knew how far is usual.
    Here, a seed gives one run, another seed another; it is on file, with an interval over seeds."""
    runs = [oracle.watched(fresh(), config(seed=seed))[1][0][1] for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    open_run(config(seed=7, out=str(tmp_path)), fresh(), Point(), [])
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seed"] == 7
    scores = [0.61, 0.66, 0.72]
    half = 4.302653 * statistics.stdev(scores) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    mean, low, high = students_t(scores)
    assert (mean, low, high) == pytest.approx(
        (
            statistics.fmean(scores),
            statistics.fmean(scores) - half,
            statistics.fmean(scores) + half,
        ),
        rel=1e-4,
    )


def test_trl_2045_texts_and_metrics_are_on_disk_without_any_service(fresh, tmp_path):
    """There, completions could be read on one web service only, and later steps overwrote earlier.
    Here, each step is a line of a file, traced steps keep every text, and the page needs no net."""
    c = config(steps=2, trace_steps="1,2")
    steps, _ = oracle.watched(policy := fresh(), c)
    with MetricsLog(tmp_path) as record:
        for step in steps:
            record.add(step.metrics)
            write_trace(tmp_path / "trace", step, c, lambda e: ({"id": e.id}, []),
                        policy.chat.pieces)  # fmt: skip
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # while the run goes on
            assert json.loads(lines[-1])["reward"] == step.metrics["reward"]
    assert len(lines) == 2
    for step in steps:
        kept = json.loads((tmp_path / f"trace/step-{step.metrics['step']:06d}.json").read_text())
        texts = [[o["text"] for o in group["completions"]] for group in kept["groups"]]
        assert texts == step.rollout.texts
    html = page(make_run(tmp_path / "run", steps=12, traced=(1, 12)), 4_000_000)
    assert "cyst" in html
    assert not [
        part for part in ('src="http', 'href="http', "@import", "src='http") if part in html
    ]


def test_trl_4256_evaluation_answers_with_the_weights_of_now(fresh):
    """There, evaluation during training was slow, and once was of stale weights.
    Here, it decodes with the adapter as it is: its answers are those of a copy of these weights."""
    policy, c = fresh(), config(steps=2, learning_rate=0.05)
    examples = [VQAExample(f"q{i}", q.images, q.prompt, ("left", "right"), 0, "MRI", "side")
                for i, q in enumerate(QUESTIONS)]  # fmt: skip
    before = [row["completion"] for row in Scorer(policy, c, Options(), Path()).predict(examples)]
    oracle.watched(policy, c)
    after = Scorer(policy, c, Options(), Path()).predict(examples)
    copy = fresh()
    oracle.put(copy, oracle.flat(policy))
    assert [row["completion"] for row in after] != before
    assert after == Scorer(copy, c, Options(), Path()).predict(examples)


def test_trl_6411_a_group_is_never_cut(fresh, trained):
    """There, a batch size found by trial fell between the rows of a group.
    Here, passes are made of whole groups, each once, and depend on nothing but their lengths."""
    groups = [group_of(trained, q, sizes) for q, sizes in zip(MANY, [(3, 4)] * 4 + [(30, 2)] * 5,
                                                             strict=True)]  # fmt: skip
    kept = trained.token_budget
    try:
        for budget in (1, 100, 250, 400, 10**6):
            trained.token_budget = budget
            plan = trained.passes(groups)
            assert sorted(i for part in plan for i in part) == list(range(9))
            for part in plan:
                rows = [groups[i].row_length for i in part]
                assert len(part) == 1 or sum(rows) <= budget
            assert plan == trained.passes(groups)
    finally:
        trained.token_budget = kept


def test_unsloth_kernel_no_compiled_attention(trained):
    """There, a compiled attention kernel was reused for shapes that it was not made for.
    Here, none is: torch's own attention, of any lengths, and sdpa in the tower."""
    assert users_of("flex_attention", "create_block_mask", "dynamo", "_dynamo", "triton") == set()
    compiled = [
        node
        for module in oracle.sources().values()
        for node in oracle.ast.walk(module)
        if isinstance(node, oracle.ast.Attribute) and node.attr == "compile"
    ]
    assert {node.value.id for node in compiled} == {"re"}
    ours = ("attention", "sampling/decode_step", "memory/fake_device")
    ours = {f"models/{name}.py" for name in ours}
    assert users_of("scaled_dot_product_attention") == ours
    assert trained.vision.model.visual.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_sglang_27140_no_stale_graph_is_replayed(fresh):
    """There, captured graphs read freed buffers or an adapter that was gone, without any error.
    Here, what graphs read is compared at each rollout: what moves or is off is not replayed."""
    assert users_of("CUDAGraph", "make_graphed_callables", "graph_pool_handle") == {
        "models/sampling/cuda_graph.py"
    }
    policy, base, record = randomise(fresh(), scale=0.2), fresh(), Recorded.new()
    policy.sampler = GraphSampler(record)
    on, _ = decoded(policy, QUESTIONS, 3)
    with policy.base():
        off, at_decode = decoded(policy, QUESTIONS, 3)
    again, _ = decoded(policy, QUESTIONS, 3)
    theirs, expected = decoded(base, QUESTIONS, 3)
    assert record.made
    assert completions(off) == completions(theirs) != completions(on) == completions(again)
    torch.testing.assert_close(at_decode, expected, atol=1e-4, rtol=0)
    for parameter in policy.parameters():
        parameter.data = -parameter.data.clone()
    moved, _ = decoded(policy, QUESTIONS, 3)
    policy.sampler = sample_eagerly
    assert completions(moved) == completions(decoded(policy, QUESTIONS, 3)[0])
