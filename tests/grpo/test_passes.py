"""Memory that runs out in a pass: the step is gone through again in smaller passes, with the same
gradient; and the pass that made the gradient not finite is known."""

import sys
import weakref

import pytest
import torch

from grpo.loop import grpo
from grpo.metrics import Step
from grpo.optim import adamw
from grpo.passes import Passes, halves
from grpo.rollout import sample_groups
from grpo.run.recorder import skipped
from grpo.settings.errors import UsageError
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo.cases import QUESTIONS, config, draw, reward, steps
from tests.grpo.test_loop import at_each_update, close, gradients
from tests.programs import Program


def starve(policy: Policy, most: int, during: str) -> list[int]:
    """Memory runs out, as a GPU's does, where more than `most` token rows go through the model in
    a forward or in a backward pass. Returns the sizes that were tried."""
    tried = []

    def allocate(tokens: int) -> None:
        tried.append(tokens)
        if tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def logprobs(groups, temperature):
        size = sum(group.row_length for group in groups)
        if during == "forward":
            allocate(size)
        found = scored(groups, temperature)
        if during == "backward" and found[0].requires_grad:
            found[0].register_hook(lambda _: allocate(size))
        return found

    scored, policy.logprobs = policy.logprobs, logprobs
    return tried


@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("mu", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_step_that_does_not_fit_is_repeated_in_halves_with_the_same_gradient(fresh, during, mu):
    c, found = config(kl_coef=0.04, updates_per_rollout=mu), []
    longest = 0
    for starved in (False, True):
        policy = randomise(fresh())
        rollout = sample_groups(policy, draw, reward, c, 0)
        if starved:  # room for the longest prompt and two of its four completions
            longest = max(len(g.prompt.input_ids) + 2 * 7 for g in rollout.groups)
            tried = starve(policy, longest, during)
        with at_each_update(lambda _, p=policy: found.append(gradients(p))):
            (step,) = steps(policy, draw, reward, c)
        assert (step.cuts > 0) == starved
    assert max(tried) > longest, "memory never ran out"
    for update, (whole, cut) in enumerate(zip(found[:mu], found[mu:], strict=True)):
        # Adam divides by the gradient's own size, so rounding grows in what has hardly any.
        close(cut, whole, 1e-3 if update else 1e-5)


def test_one_completion_that_does_not_fit_ends_in_one_line(fresh):
    policy = fresh()
    starve(policy, 3, "forward")
    with pytest.raises(UsageError, match=r"out of memory with one completion.*--gradient-check"):
        list(steps(policy, draw, reward, config()))


def test_other_errors_of_a_pass_are_not_taken_for_memory(fresh):
    policy = fresh()
    passes = Passes(
        policy, sample_groups(policy, draw, reward, config(), 0).groups, torch.ones(3) > 0
    )

    def fails(groups, at):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        passes.run(fails)


def test_a_pass_without_memory_keeps_nothing_alive_when_it_runs_again(fresh):
    """Its tensors are what took the memory: a traceback would hold them during the next try."""
    policy, c = fresh(), config()
    adamw(policy.parameters(), c)  # gives the parameters their gradients
    passes = Passes(policy, sample_groups(policy, draw, reward, c, 0).groups, torch.ones(3) > 0)
    alive = weakref.WeakSet()

    class Large:
        """Stands for what a pass allocates."""

    def runs_out_once(groups, at):
        assert not alive
        large = Large()
        alive.add(large)
        if passes.cuts == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    passes.run(runs_out_once)
    assert passes.cuts == 1


def test_halves_hold_every_completion_once_and_in_order(fresh):
    policy = fresh()
    rollout = sample_groups(policy, draw, reward, config(group_size=5), 0)
    tokens = torch.arange(len(rollout.row))
    parts = [(rollout.groups, tokens)]
    while len(cut := [half for one in parts for half in halves(*one)]) > len(parts):
        parts = cut
    assert [len(groups) for groups, _ in parts] == [1] * 15
    assert all(len(groups[0].completions) == 1 for groups, _ in parts)
    ids = [ids for groups, _ in parts for ids in groups[0].completions]
    whole = [ids for group in rollout.groups for ids in group.completions]
    assert all(map(torch.equal, ids, whole))
    assert torch.equal(torch.cat([places for _, places in parts]), tokens)
    for (groups, places), own in zip(parts, ids, strict=True):
        assert len(places) == len(own)
        assert groups[0].truncated[0] == (own[-1].item() not in policy.chat.eos)


@pytest.mark.slow
def test_a_real_limit_of_memory_is_survived(tiny_folder):
    """The program limits its own address space, and torch's allocations fail for real."""
    done = Program(sys.executable, "-m", "tests.grpo.starved", str(tiny_folder)).finish()
    assert done.returncode == 0, done.stderr[-2000:]
    cuts, difference = done.stdout.split()
    assert int(cuts) > 0, "memory never ran out"
    assert float(difference) < 1e-5


@pytest.mark.parametrize("where", ["weights", "logprobs"])
def test_a_pass_that_spoils_the_gradient_is_named_and_updates_nothing(fresh, where):
    """A number that is not finite in one group: nothing moves, the moments stay clean."""
    c = config(steps=2, kl_coef=0.0)
    policy = randomise(fresh())
    assert len(policy.passes(sample_groups(policy, draw, reward, c, 1).groups)) == 1, "one pass"
    optimizer = adamw(policy.parameters(), c)
    run = grpo(policy, optimizer, draw, reward, c)
    next(run)
    before = [p.detach().clone() for p in policy.parameters()]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in policy.parameters()]
    plain = policy.logprobs

    def spoilt(groups, temperature):
        logprobs, entropy = plain(groups, temperature)
        if "two" not in [group.prompt.id for group in groups]:
            return logprobs, entropy
        if where == "weights":  # finite itself, and its derivative is not
            return logprobs + 0 * (logprobs - logprobs).sqrt(), entropy
        return logprobs * float("nan"), entropy

    policy.logprobs = spoilt
    step = next(run)
    assert step.metrics["skipped_updates"] == 1.0
    assert [example.id for example in step.suspects] == ["two"]
    assert all(map(torch.equal, before, policy.parameters()))
    assert all(
        torch.equal(optimizer.state[p]["exp_avg"], was)
        for p, was in zip(policy.parameters(), moments, strict=True)
    )


def test_so_many_skipped_steps_in_a_row_end_the_run_and_one_that_updates_starts_the_count_anew():
    before = [{"skipped_updates": s} for s in (1.0, 0.0, 1.0)]
    bad = Step({"step": 7, "skipped_updates": 1.0}, suspects=[QUESTIONS[2]])
    assert skipped(bad, before, 3) == (
        "step 7: a loss, log-prob or gradient is not finite (question two); "
        "100% of its updates left out"
    )
    assert skipped(Step({"step": 8, "skipped_updates": 0.0}), before, 3) == ""
    for late in ([0.0], [0.0, 1.0]):
        assert skipped(bad, [{"skipped_updates": s} for s in (1.0, 1.0, *late)], 3)
    with pytest.raises(UsageError, match=r"question two\), as in 3 steps in a row; use another"):
        skipped(bad, [*before, before[0]], 3)
