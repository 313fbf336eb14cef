"""Each type of model against transformers' own class for it: random, tiny, in float32.

Images have sizes that leave windows of Qwen2.5-VL's tower partly filled.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from grpo.settings.errors import UsageError
from models.export import export_merged
from models.images.features import VisionCache
from models.loading.load import ImageProcessor, load
from models.loading.model_types import MODEL_TYPES
from models.open_policy import load_policy
from models.policy import Policy
from models.tree import Group
from tests.conftest import randomise
from tests.models import plain
from tests.models.hub import INDEX, make_hub_folder
from tests.models.memory.test_fake_step import config_of, growth, measured, planned
from tests.tiny import NoiseImage, Question, make_model

WIDTHS, HEIGHTS = (84, 140, 56, 112), (140, 84, 84, 56)  # 3 x 5 tokens, ..., in windows of 2 x 2
MANY = tuple(NoiseImage(i, WIDTHS[i % 4], HEIGHTS[i % 3]) for i in range(16))
QUESTIONS = [
    Question("Which side is the lesion on?\nA) left\nB) right", MANY[:1], "one"),
    Question("Compare these.", MANY[1:3], "two"),
    Question("Which slices show it?", MANY, "sixteen"),
]
KEYS = [(0, 42, 1, i, 0) for i in range(len(QUESTIONS))]


@pytest.fixture(
    scope="module", params=[("qwen2_vl", True), *(("qwen2_5_vl", t) for t in (True, False))]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each type, whose head is the embedding or one of its own."""
    kind, tied = request.param
    return make_model(tmp_path_factory.mktemp("type") / "model", kind=kind, tied=tied)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    """A policy whose adapter matters. A test must not change its weights."""
    return randomise(load_policy(str(folder), device="cpu"))


def model_class(folder: Path) -> type:
    return MODEL_TYPES[json.loads((folder / "config.json").read_text())["model_type"]].model


def theirs(policy: Policy, groups: list[Group]) -> Tensor:
    """(N,) log-probs by transformers' forward, one completion at a time."""
    found = [
        plain.logprobs(policy, question, group.prompt, completion, 1.0)
        for question, group in zip(QUESTIONS, groups, strict=True)
        for completion in group.completions
    ]
    return torch.cat(found)


def test_logprobs_and_gradients_are_transformers(policy: Policy) -> None:
    groups = plain.rollout(policy, QUESTIONS)
    ours, other = policy.logprobs(groups, 1.0)[0], theirs(policy, groups)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=0)
    slopes = (torch.autograd.grad(each.sum(), policy.parameters()) for each in (ours, other))
    for mine, correct in zip(*slopes, strict=True):
        assert (mine - correct).norm() <= 1e-5 * correct.norm()
    assert ours.std() > 0.5  # of one value for every token, equality would say little


def test_what_is_sampled_is_what_is_scored(policy: Policy) -> None:
    prompts = policy.encode(QUESTIONS)
    drawn = plain.rollout_with_logprobs(policy, prompts, 4, KEYS, 1.0, 12)
    at_decode = [row[:n] for row, n in zip(drawn.logprobs, drawn.lengths, strict=True)]
    scored, _ = policy.logprobs(drawn.groups(prompts), 1.0)
    torch.testing.assert_close(torch.cat(at_decode), scored.detach(), atol=1e-4, rtol=0)


def test_positions_are_transformers(policy: Policy) -> None:
    inner = policy.model.get_base_model().model
    for question, prompt in zip(QUESTIONS, policy.encode(QUESTIONS), strict=True):
        batch = plain.inputs(policy, question, prompt)
        del batch["pixel_values"]
        assert torch.equal(prompt.position_ids, inner.get_rope_index(**batch)[0][:, 0])


def test_greedy_answers_are_transformers(policy: Policy) -> None:
    prompts = policy.encode(QUESTIONS)
    answers = policy.sample(prompts, 1, None, temperature=0.0, max_completion_length=16)
    banned = policy.banned.nonzero().flatten().tolist()
    for question, group in zip(QUESTIONS, answers, strict=True):
        said = policy.model.get_base_model().generate(
            **plain.inputs(policy, question, group.prompt),
            **{"do_sample": False, "max_new_tokens": 16, "suppress_tokens": banned},
        )
        policy.model.get_base_model().model.rope_deltas = None  # its state, not ours
        assert torch.equal(said[0, len(group.prompt.input_ids) :], group.completions[0])


@torch.no_grad()
def test_features_are_kept_in_the_order_of_the_image(policy: Policy) -> None:
    """The rows that change most with a corner of the image are those of that corner."""
    image = NoiseImage(1, 140, 84)  # 5 x 3 tokens; the windows' order is another
    pixels = image.open()
    kept, _ = policy.vision.features(image)
    for place in range(15):
        changed, (row, column) = pixels.copy(), divmod(place, 5)
        changed.paste("white", (28 * column, 28 * row, 28 * column + 28, 28 * row + 28))
        other = policy.vision._compute(policy.vision._patches(changed, ""), "")[0]
        assert int((other - kept).norm(dim=1).argmax()) == place


def test_an_adapter_opens_in_plain_peft(folder: Path, policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    groups = plain.rollout(policy, QUESTIONS)
    expected, _ = policy.logprobs(groups, 1.0)
    other = load_policy(str(folder), device="cpu")
    other.model = PeftModel.from_pretrained(model_class(folder).from_pretrained(folder), tmp_path)
    with torch.no_grad():
        found = theirs(other, groups)
    torch.testing.assert_close(expected.detach(), found, atol=1e-5, rtol=0)


def test_a_merged_model_has_the_names_and_the_processor_of_its_base(
    folder: Path, policy: Policy, tmp_path: Path
) -> None:
    assert export_merged(policy, tmp_path / "out") < 1e-4
    weights, base = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folder))
    assert weights.keys() == base.keys()
    changed = {name for name in base if not torch.equal(weights[name], base[name])}
    assert changed == {n for n in base if "_proj.weight" in n and n.startswith("model.layers")}
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    assert processor["processor_class"] == MODEL_TYPES[kind].processor
    assert ImageProcessor.from_pretrained(tmp_path / "out").merge_size == 2
    again = load_policy(str(tmp_path / "out"), device="cpu")
    groups = plain.rollout(policy, QUESTIONS)
    expected = policy.logprobs(groups, 1.0)[0]
    torch.testing.assert_close(again.logprobs(groups, 1.0)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_plan_of_memory_is_that_of_a_real_step(folder: Path) -> None:
    config = config_of(2, 3)
    plan, real = planned(folder, config, QUESTIONS[2]), measured(folder, config, QUESTIONS[2])
    assert growth(plan.held, plan.phases) == pytest.approx(growth(*real), rel=0.02)


def test_other_windows_have_other_features_under_another_name(tmp_path: Path) -> None:
    """The weights are the same: only config.json tells the towers apart."""
    found = []
    for window in (56, 112):
        model = make_model(tmp_path / str(window), kind="qwen2_5_vl")
        config = json.loads((model / "config.json").read_text())
        config["vision_config"]["window_size"] = window
        (model / "config.json").write_text(json.dumps(config))
        vision: VisionCache = load_policy(str(model), device="cpu", cache=tmp_path / "cache").vision
        found.append((vision._name(MANY[0].open()), vision.features(MANY[0])[0]))
    (name, features), (other_name, other) = found
    assert name != other_name
    assert not torch.equal(features, other)


def test_a_tower_of_another_width_than_the_text_model_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", kind="qwen2_5_vl")
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["out_hidden_size"] = 32
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="its features have 32 numbers, its text model takes 64; "):
        load(str(model), torch.float32, weights=False)


@torch.no_grad()
def test_a_folder_as_the_hubs_qwen2_5_vl_loads_and_is_exported_in_its_form(
    tmp_path: Path,
) -> None:
    hub = make_hub_folder(tmp_path / "hub", kind="qwen2_5_vl")
    policy = randomise(load_policy(str(hub), device="cpu"))
    assert type(policy.model.get_base_model()) is MODEL_TYPES["qwen2_5_vl"].model
    assert policy.language_model.config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert policy.max_length == 128_000
    assert policy.model.get_base_model().model.visual.window_size == 112
    groups = plain.rollout(policy, QUESTIONS, 6)
    ours, _ = policy.logprobs(groups, 1.0)
    torch.testing.assert_close(ours, theirs(policy, groups), atol=1e-4, rtol=0)
    assert export_merged(policy, tmp_path / "out") < 1e-4
    names = json.loads((hub / INDEX).read_text())["weight_map"].keys()
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == names
