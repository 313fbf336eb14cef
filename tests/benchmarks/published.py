"""A step at the shapes of the published Qwen2-VL-2B, counted on a card that is not there.

The loop, the policy and the samplers are the project's own, and so are the settings of the recipe.
Weights have shapes and nothing else. Prompts have 512 tokens of an image, whose features are there
already (they are computed once a run), completions their full length, and rewards differ.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers import Qwen2VLImageProcessorPil as ImageProcessor

from grpo.loop import grpo_step
from grpo.optim import adamw
from grpo.settings.config import Config
from grpo.settings.recipes import RECIPES
from models import lora
from models.policy import Policy
from models.sampling.cuda_graph import GraphSampler
from models.tree import Prompt, rope_positions
from tests.benchmarks.card import OnCard, Once, card
from tests.benchmarks.memory import QWEN2_VL_2B, TOWER_2B
from tests.benchmarks.operations import Place
from tests.benchmarks.our_phases import phases
from tests.models.hub import hub_config, write
from tests.tiny import PREPROCESSOR, SPECIAL, Question, make_tokenizer

IMAGE_TOKENS, PROMPT_TOKENS = 512, 600
GRID = (1, 32, 64)  # patches of an image of 896 x 448 pixels


def settings(group_size: int, length: int) -> Config:
    """The recipe medvlm-r1 with another G and length."""
    own = {"group_size": group_size, "max_completion_length": length, "device": "cuda"}
    return Config(**RECIPES["medvlm-r1"] | {"recipe": "medvlm-r1"} | own)


def two_billion(folder: Path, layers: int, checkpointing: bool) -> Policy:
    """The policy without weights; call it on a card."""
    folder.mkdir()
    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = hub_config({name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL})
    config |= QWEN2_VL_2B | {"num_hidden_layers": layers}
    config["vision_config"] |= TOWER_2B | {"depth": 1}
    write(folder / "config.json", config)
    write(folder / "preprocessor_config.json", PREPROCESSOR)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder))
    model = model.to(torch.bfloat16).requires_grad_(False)
    tuned = lora.attach(model, lora.R, lora.ALPHA, seed=0).to("meta")
    processor = ImageProcessor.from_pretrained(folder)
    return Policy(tuned, tokenizer, processor, checkpointing=checkpointing, cache=None)


def prompt_of(policy: Policy) -> Prompt:
    pad, text = policy.chat.image_pad, PROMPT_TOKENS - IMAGE_TOKENS
    ids = torch.tensor([5] * (text - 20) + [pad] * IMAGE_TOKENS + [5] * 20)
    positions = rope_positions(ids, [GRID], pad, policy.merge)
    width = policy.language_model.config.hidden_size
    features = torch.zeros(IMAGE_TOKENS, width, dtype=torch.bfloat16)
    return Prompt(ids, positions, (features,), "", "question-1")


def counted_step(
    group_size: int, length: int, layers: int, checkpointing: bool
) -> tuple[OnCard, Once]:
    """What one step asked for, and a token step of it."""
    config = settings(group_size, length)
    drawn = config.prompts_per_step * group_size * length
    counted = OnCard(drawn)
    questions = [Question("Which side?")] * config.prompts_per_step

    def reward(examples, texts, ids=()):
        values = [float(i % 2) for i in range(len(texts))]
        return values, {"sum": values}

    with tempfile.TemporaryDirectory() as folder, card(counted):
        policy = two_billion(Path(folder) / "model", layers, checkpointing)
        policy.banned[sorted(policy.chat.eos)] = True
        policy.sampler = GraphSampler(lambda step, *_: Once(counted, step))
        prompt = prompt_of(policy)
        policy.encode = lambda examples, *_: [prompt] * len(examples)
        optimizer = adamw(policy.parameters(), config)
        optimizer.step()  # makes its state, once a run
        counted.phases, counted.places = {}, Place()
        with phases(counted):
            grpo_step(policy, optimizer, lambda *_: questions[0], reward, config, step=1)
        (token_step,) = policy.sampler.graphs.values()
    return counted, token_step
