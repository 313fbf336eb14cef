"""Parts 4, 5, 6 and 8: sampling, numbers and passes of a random model of the size of 2B."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig

from models.lora import R
from models.open_policy import load_policy
from models.policy import Policy
from models.sampling.cuda_graph import GraphSampler
from models.tree import Group, Prompt
from tests.benchmarks import counts
from tests.benchmarks.floor import bandwidth
from tests.benchmarks.memory import QWEN2_VL_2B, TOWER_2B, TOWER_SMALL
from tests.benchmarks.memory import SMALL as FEW
from tests.benchmarks.operations import KERNELS
from tests.gpu import machine
from tests.gpu.machine import DEVICE, ON_GPU, Row, Size, kernel_table, milliseconds, wait
from tests.models.hub import make_hub_folder, random_weights, write, write_weights
from tests.models.sampling.recorded import Called
from tests.tiny import NoiseImage, Question

WORDS = "Which side is the lesion on?\nA) left\nB) right\n" * 3


def make_model(size: Size) -> str:
    """The folder of the random model; written once on a machine (4.5 GB, a minute)."""
    folder = Path(tempfile.gettempdir()) / f"measured-{'small' if size.small else '2b'}"
    if not (folder / "whole").is_file():
        if not folder.is_dir():
            make_hub_folder(folder)
        config = json.loads((folder / "config.json").read_text())
        config |= (FEW if size.small else QWEN2_VL_2B) | {"vocab_size": size.vocabulary}
        config["vision_config"] |= TOWER_SMALL if size.small else TOWER_2B
        write(folder / "config.json", config)
        write_weights(folder, random_weights(folder, seed=0, scale=0.02))
        (folder / "whole").touch()
    return str(folder)


def policy_of(size: Size, checkpointing: str = "off") -> Policy:
    model = make_model(size)
    kind = {"dtype": "bfloat16", "gradient_checkpointing": checkpointing}
    policy = load_policy(model, device=DEVICE.type, **kind)
    policy.banned[sorted(policy.chat.eos)] = True  # completions of full length
    policy.sampler = GraphSampler() if ON_GPU else GraphSampler(Called)
    return policy


def prompts_of(policy: Policy, size: Size) -> list[Prompt]:
    images = [NoiseImage(seed, size.side, size.side) for seed in range(size.prompts)]
    return policy.encode([Question(WORDS, (image,)) for image in images])


def draw(policy: Policy, prompts: Sequence[Prompt], size: Size, length: int) -> list[Group]:
    keys = [(0, 1, 2, i, 3) for i in range(len(prompts))]
    return policy.sample(
        prompts, size.group_size, keys, temperature=1.0, max_completion_length=length
    )


def rollouts(size: Size) -> Iterator[Row]:
    """Part 4: graphs against the same steps called one by one, and a token step over its floor."""
    policy = policy_of(size)
    prompts = prompts_of(policy, size)
    yield {"what": "prompts", "tokens": [len(prompt.input_ids) for prompt in prompts]}
    machine.forget_peak()
    start = time.perf_counter()
    first = draw(policy, prompts, size, size.length)
    wait()
    seconds = time.perf_counter() - start
    graphs = len(policy.sampler.graphs)
    yield {
        "what": "first rollout, with captures",
        "s": seconds,
        "graphs": graphs,
    } | machine.memory()
    whole = milliseconds(lambda: draw(policy, prompts, size, size.length), 2)
    one = milliseconds(lambda: draw(policy, prompts, size, 1), 3)
    token_ms = (whole - one) / (size.length - 1)
    floor = floor_ms(size, len(prompts[0].input_ids))
    row = {"what": "rollout", "s": whole / 1e3, "prefill_s": one / 1e3, "token_step_ms": token_ms}
    yield row | {"floor_ms": floor, "times_floor": token_ms / floor}
    few = min(size.length, 64)
    by_graph = draw(policy, prompts, size, few)
    graphs_sampler, policy.sampler = policy.sampler, GraphSampler(Called)
    called = draw(policy, prompts, size, few)
    yield {"what": "graphs draw what calls draw", "same": same(by_graph, called)}
    again = same([cut(group, few) for group in first], by_graph)
    yield {"what": "a longer rollout begins with the shorter", "same": again}
    policy.sampler = graphs_sampler
    yield from kernel_table(lambda: draw(policy, prompts, size, few))


def floor_ms(size: Size, prompt: int) -> float:
    """The fewest milliseconds of a token step: what it must read at the rate of a copy or sum."""
    config = Qwen2VLConfig.from_pretrained(make_model(size))
    sizes = counts.sizes_of(config, R, torch.bfloat16.itemsize)
    work = counts.Work(size.prompts, prompt, size.group_size, size.length)
    moved = counts.decode(sizes, work).bytes / (size.length - 1)
    return 1e3 * moved / bandwidth(DEVICE)


def cut(group: Group, length: int) -> Group:
    return replace(group, completions=[ids[:length] for ids in group.completions])


def same(one: Sequence[Group], other: Sequence[Group]) -> bool:
    """Whether two rollouts have the same tokens."""
    pairs = ((a.completions, b.completions) for a, b in zip(one, other, strict=True))
    return all(torch.equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


def numbers(size: Size) -> Iterator[Row]:
    """Part 5: how far the sampler is from the scorer, KL at the start, the gradient again."""
    policy = policy_of(size)
    prompts = prompts_of(policy, size)
    groups = draw(policy, prompts, size, size.length)
    with torch.no_grad():
        scored = torch.cat([policy.logprobs([group], 1.0)[0] for group in groups]).cpu()
    drawn = torch.cat([row for group in groups for row in group.sampling_logprobs])
    off = (scored - drawn.cpu()).abs()
    row = {"what": "drawn against scored", "mean": float(off.mean()), "max": float(off.max())}
    yield row | {"p99": float(off.quantile(0.99))}
    own = policy.logprobs(groups[:1], 1.0)[0].detach()
    with policy.reference():
        reference = policy.logprobs(groups[:1], 1.0)[0]
    off = reference - own
    row = {"what": "KL at the start", "unequal": float((off != 0).float().mean())}
    yield row | {"max": float(off.abs().max()), "kl": float((off.exp() - off - 1).mean())}
    once, again = gradient(policy, groups[:1]), gradient(policy, groups[:1])
    yield {"what": "gradient again", "off": float((again - once).norm() / once.norm())}
    flags = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction
    flags.allow_bf16_reduced_precision_reduction = True
    reduced = gradient(policy, groups[:1])
    flags.allow_bf16_reduced_precision_reduction = before
    row = {"what": "gradient with sums in bfloat16"}
    yield row | {"off": float((reduced - once).norm() / once.norm())}


def gradient(policy: Policy, groups: Sequence[Group]) -> Tensor:
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    logprobs, _ = policy.logprobs(groups, 1.0)
    weights = torch.linspace(-1, 1, len(logprobs), device=logprobs.device)
    (logprobs * weights).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def given_groups(prompts: Sequence[Prompt], size: Size) -> list[Group]:
    """Groups of made-up completions of full length."""
    ids = torch.arange(size.length) % 100
    rows = [ids] * size.group_size
    return [Group(prompt, rows, [True] * size.group_size) for prompt in prompts]


def score(policy: Policy, groups: Sequence[Group], update: bool) -> None:
    """All passes of a step: with gradients, or of the reference."""
    for part in policy.passes(groups):
        chosen = [groups[i] for i in part]
        if update:
            policy.logprobs(chosen, 1.0)[0].sum().backward()
        else:
            with policy.reference():
                policy.logprobs(chosen, 1.0)


def passes(size: Size) -> Iterator[Row]:
    """Part 6: reference and update with and without checkpointing, their peaks and kernels."""
    for checkpointing in ("on", "off"):
        policy = policy_of(size, checkpointing)
        groups = given_groups(prompts_of(policy, size), size)
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        machine.forget_peak()
        held = torch.cuda.memory_allocated() / 1e9 if ON_GPU else 0.0
        plan = [len(part) for part in policy.passes(groups)]
        row = {"what": "passes", "checkpointing": checkpointing, "groups_of_a_pass": plan}
        row["reference_s"] = milliseconds(lambda p=policy, g=groups: score(p, g, False), 3) / 1e3
        row["update_s"] = milliseconds(lambda p=policy, g=groups: score(p, g, True), 3) / 1e3
        yield row | {"held_before_gb": held} | machine.memory()
        for one in kernel_table(lambda p=policy, g=groups[:1]: score(p, g, True)):
            yield {"checkpointing": checkpointing} | one
        del policy, groups


def kernels(size: Size) -> Iterator[Row]:
    """Part 8: how many kernels each operation of a step starts, beside tests/gpu/kernels.json."""
    policy = policy_of(size)
    policy.sampler = GraphSampler(Called)  # a graph's kernels have no operation
    prompts = prompts_of(policy, size)
    groups = given_groups(prompts, size)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    few = 2

    def work() -> None:
        draw(policy, prompts, size, few)
        score(policy, groups[:1], update=False)
        score(policy, groups[:1], update=True)

    work()
    calls, started = Counter(), Counter()
    for event in machine.profiled(work).events():
        if event.cpu_parent is None:
            collect(event, calls, started)
    for name, count in calls.most_common():
        found = started[name] / count
        row = {"operation": name, "calls": count, "kernels": found, "table": KERNELS[name]}
        yield row | {"agrees": abs(found - KERNELS[name]) < 0.5 if ON_GPU else None}


def collect(event: Any, calls: Counter[str], started: Counter[str]) -> None:
    """Count an operation of the table with all it is made of; look inside any other."""
    name = event.name.removeprefix("aten::")
    if event.name.startswith("aten::") and name in KERNELS:
        calls[name] += 1
        started[name] += kernels_of(event)
        return
    for child in event.cpu_children:
        collect(child, calls, started)


def kernels_of(event: Any) -> int:
    return len(event.kernels) + sum(map(kernels_of, event.cpu_children))
