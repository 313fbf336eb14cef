"""TRL's side of against_trl.py: `GRPOTrainer.train()` with its own generation."""

import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.example import VQAExample
from models import lora
from models.chat import Chat
from tests.benchmarks.same_work import CLIP_EPS, MAX_GRAD_NORM, RATE, Task, Worker, reward


class Trainer(GRPOTrainer):
    """TRL's, timed. It generates, and scores without gradient, inside `_prepare_inputs`; from there
    to the end of the step is its update."""

    worker: Worker

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        with self.worker.watch.of("generation"):
            completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.drawn = prompt_ids, [len(ids) for ids in completion_ids]
        return completion_ids, logprobs

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.worker.watch.of("reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super()._prepare_inputs(*args, **kwargs)
        self.prepared = time.perf_counter()
        return inputs


class Turns(TrainerCallback):
    """A step is a rollout and its mu updates, each of which is a step to TRL."""

    def __init__(self, worker: Worker, trainer: Trainer, mu: int) -> None:
        self.worker, self.trainer, self.mu = worker, trainer, mu

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.worker.wait()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._updated()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self._updated()
        if state.global_step % self.mu == 0:
            self.worker.done(*self.trainer.drawn)
            if state.global_step < args.max_steps:
                self.worker.wait()

    def _updated(self) -> None:
        self.worker.watch.add("update", time.perf_counter() - self.trainer.prepared)


def row(question: VQAExample) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question.prompt}],
        "images": [{"path": str(image.path), "bytes": None} for image in question.images],
    }


def dataset(questions: list[VQAExample]) -> datasets.Dataset:
    """Rows whose images are read from their files when they are asked for."""
    made = datasets.Dataset.from_list([row(question) for question in questions])
    return made.cast_column("images", datasets.List(datasets.Image()))


def trainer(task: Task, out: str, dtype: str = "float32", use_cpu: bool = True) -> Trainer:
    case = task.case
    chat = Chat(AutoTokenizer.from_pretrained(task.folder))
    rows = transformers.AutoConfig.from_pretrained(task.folder).get_text_config().vocab_size
    banned = chat.banned(rows)
    banned[sorted(chat.eos)] = True  # completions of one length
    settings = GRPOConfig(
        output_dir=out,
        model_init_kwargs={"dtype": dtype, "attn_implementation": "sdpa"},
        generation_kwargs={"suppress_tokens": banned.nonzero()[:, 0].tolist()},
        loss_type="grpo",
        beta=case.beta,
        num_iterations=case.mu,
        temperature=1.0,
        scale_rewards="group",
        epsilon=CLIP_EPS,
        use_bias_correction_kl=False,
        num_generations=case.completions,
        max_completion_length=case.tokens,
        per_device_train_batch_size=case.prompts * case.completions // case.passes,
        gradient_accumulation_steps=case.passes,
        max_steps=case.mu * task.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        optim="adamw_torch",
        bf16=dtype == "bfloat16",
        use_cpu=use_cpu,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    return Trainer(
        model=task.folder,
        args=settings,
        reward_funcs=lambda completions, **_: reward([c[0]["content"] for c in completions]),
        train_dataset=dataset(task.questions()),
        peft_config=LoraConfig(r=lora.R, lora_alpha=lora.ALPHA, target_modules=lora.TARGETS),
    )


def main() -> None:
    task = Task.from_json(sys.argv[1])
    worker = Worker(task.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as out:
        made = trainer(task, out)
        made.worker = worker
        made.remove_callback(transformers.PrinterCallback)
        made.add_callback(Turns(worker, made, task.case.mu))
        worker.ready(made.model)
        made.train()


if __name__ == "__main__":
    main()
