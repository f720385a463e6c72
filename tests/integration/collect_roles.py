"""What tests of collect runs share: a model that is only a tokenizer, and role processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


def write_tokenizer_only(model: Path, characters: Iterable[str]) -> None:
    """A model directory without weights: one token a character, padding and end before them."""
    model.mkdir(exist_ok=True)
    symbols = ["<pad>", "<eos>", *characters]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text('{"eos_token_id": 1, "pad_token_id": 0}', encoding="utf-8")


@contextlib.contextmanager
def role(command: str, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``headrace COMMAND CONFIG`` until the end of the block; it appends to ``COMMAND.log``."""
    with (
        open(config.parent / f"{command}.log", "ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "common.cli", command, str(config)], stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=20)
