"""How much of a bare forward is left after text, queue, pipe and verdict: ``python -m`` this.

Prints one JSON object. The backend judges groups of answers as a verifier would; the baseline runs
the same model on the same sequences, tokenised, planned and laid out beforehand, in this process.
The two take turns, each time with answers that neither has seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actors.verification.judgement import Check, VerifyJob
from actors.verification.models.backend import ModelBackend, model_backend
from actors.verification.models.conversation import ConversationEncoder
from actors.verification.models.process import PreparedBatch, forward, prepare
from actors.verification.models.work import RunnerLimits, Work, build_batches
from common.codec import pack
from common.config import VerifierConfig, VerifierModelConfig
from common.errors import FatalError
from common.torch.scoring_model import ScoringModel

REPEATS = 5
NUM_GROUPS = 6
GROUP_SIZE = 8
PROMPT_CHARACTERS = 160
ANSWER_CHARACTERS = (80, 320)
BATCH_TOKENS = 4096
_LETTERS = "abcdefghijklmnopqrstuvwxyz ."


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        directory = Path(folder)
        num_parameters = save_classifier(directory)
        config = VerifierConfig(
            models=(
                VerifierModelConfig(kind="safety", path=folder, template="plain", device="cpu"),
            ),
            model_batch_tokens=BATCH_TOKENS,
        )
        figures = asyncio.run(measure(directory, config))
    json.dump({**figures, "num_parameters": num_parameters}, sys.stdout)


async def measure(directory: Path, config: VerifierConfig) -> dict[str, object]:
    """Seconds of both, and tokens a second by the tokens of the sequences as they are."""
    bare = ScoringModel.load(
        directory, "score", device="cpu", dtype="float32", max_tokens=config.models[0].max_tokens
    )
    encoder = ConversationEncoder(directory, "plain")
    seconds: dict[str, list[float]] = {"backend": [], "bare": []}
    num_tokens = 0
    async with model_backend(config) as backend:
        for turn in range(REPEATS + 1):
            jobs = answers(turn)
            works = [_work(encoder, job) for job in jobs]
            taken_s = {"backend": await _judge_all(backend, jobs), "bare": _run_bare(bare, works)}
            if turn:  # the first warms up, and loads the model
                num_tokens = sum(len(work.token_ids) for work in works)
                for name, value in taken_s.items():
                    seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ratio": median["bare"] / median["backend"],
        "seconds": seconds,
        "tokens_per_second": {name: num_tokens / value for name, value in median.items()},
        "num_sequences": NUM_GROUPS * GROUP_SIZE,
        "num_tokens": num_tokens,
    }


def answers(seed: int) -> list[VerifyJob]:
    """Groups of answers to one prompt each, of random text and lengths."""
    source = random.Random(seed)

    def text(length: int) -> str:
        return "".join(source.choices(_LETTERS, k=length))

    checks = (Check(kind="safety", reference_json="{}"),)
    prompts = [text(PROMPT_CHARACTERS) for _ in range(NUM_GROUPS)]
    return [
        VerifyJob(completion=text(source.randint(*ANSWER_CHARACTERS)), checks=checks, prompt=prompt)
        for prompt in prompts
        for _ in range(GROUP_SIZE)
    ]


async def _judge_all(backend: ModelBackend, jobs: list[VerifyJob]) -> float:
    started_s = time.perf_counter()
    replies = await asyncio.gather(*map(backend.judge, jobs))
    taken_s = time.perf_counter() - started_s
    if not all(reply.judgements for reply in replies):
        raise FatalError("the backend of the benchmark did not judge every answer")
    return taken_s


def _work(encoder: ConversationEncoder, job: VerifyJob) -> Work:
    ids = encoder.encode(job.prompt, job.completion).token_ids
    return Work("safety", ids, np.array([len(ids) - 1], dtype=np.int32), share=job.prompt)


def _run_bare(model: ScoringModel, works: list[Work]) -> float:
    limits = RunnerLimits(batch_tokens=BATCH_TOKENS, queue_tokens=0, batch_s=0.0, load_s=0.0)
    batches: list[PreparedBatch] = [
        prepare([pack(built.request), *(array.tobytes() for array in built.arrays)])
        for built in build_batches(works, limits)
    ]
    started_s = time.perf_counter()
    for batch in batches:
        forward(model, "score", batch)
    return time.perf_counter() - started_s


def save_classifier(directory: Path) -> int:
    """Write a random Qwen2 classifier with one token a letter; returns its parameters."""
    from transformers import Qwen2Config, Qwen2ForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = Qwen2Config(
        vocab_size=len(_LETTERS) + 1,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        num_labels=1,
        pad_token_id=0,
        dtype="float32",
    )
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(config).float()
    model.save_pretrained(directory)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    stand_ins = pieces.pre_tokenize_str(_LETTERS)[0][0]
    vocabulary = {symbol: number for number, symbol in enumerate(["<pad>", *stand_ins])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return sum(weight.numel() for weight in model.parameters())


if __name__ == "__main__":
    main()
