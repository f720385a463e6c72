"""TRL's ``GRPOTrainer`` on the benchmark's task: ``python -m learner.studies.trl_study FILE.json``.

Prints one JSON object: mean reward of each step's batch, when each step ended, in seconds since the
process began, and what was set. TRL samples with ``model.generate``; everything that has a
counterpart in the run file of the other side is set to its value.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from common.answers import extract_answer, parse_number


def main(settings_file: Path) -> None:
    """Train by the settings in ``settings_file`` and print what happened."""
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its logs
        figures = train(settings, settings_file.parent)
    json.dump(figures, sys.stdout)


def train(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the trainer for ``num_steps``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(settings["num_threads"])
    rows = [json.loads(line) for line in Path(settings["prompts"]).read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    watch = _watch()
    dataset = importlib.import_module("datasets").Dataset  # has no types
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(output_dir=str(folder / "trl"), **trainer_arguments(settings)),
        reward_funcs=accuracy_rewards,
        train_dataset=dataset.from_list(
            [{"prompt": row["prompt"], "gold": row["gold"]} for row in rows]
        ),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[watch],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {
        "rewards": [entry["reward"] for entry in logged],
        "mean_lengths": [entry["completions/mean_length"] for entry in logged],
        "step_ends_s": watch.ends_s,
        "arguments": trainer_arguments(settings),
    }


def trainer_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Of ``GRPOConfig``: a step is ``groups_per_step`` prompts with ``group_size`` answers each."""
    return {
        "seed": settings["seed"],
        "max_steps": settings["num_steps"],
        "per_device_train_batch_size": settings["groups_per_step"] * settings["group_size"],
        "gradient_accumulation_steps": 1,
        "num_generations": settings["group_size"],
        "max_completion_length": settings["max_tokens"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "max_grad_norm": 1.0,
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon": 0.2,
        "num_iterations": 1,
        "scale_rewards": "group",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "shuffle_dataset": False,
        "use_vllm": False,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def accuracy_rewards(completions: list[str], gold: list[str], **_: object) -> list[float]:
    """1 where the final answer equals ``gold``, as the verifier of kind ``arithmetic`` judges."""
    return [
        accuracy(completion, str(wanted))
        for completion, wanted in zip(completions, gold, strict=True)
    ]


def accuracy(completion: str, gold: str) -> float:
    """Of one answer."""
    answer = extract_answer(completion)
    value = None if answer is None else parse_number(answer)
    return float(value is not None and value == parse_number(gold))


def _watch() -> Any:
    """A callback that notes when steps end, in ``ends_s``."""
    from transformers import TrainerCallback

    began_s = psutil.Process().create_time()

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def __init__(self) -> None:
            self.ends_s: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.ends_s.append(time.time() - began_s)

    return Watch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
