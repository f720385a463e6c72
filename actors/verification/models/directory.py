"""What can be said of a model directory without loading it: enough to refuse it at the start."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from common.config import VerifierModelConfig
from common.errors import FatalError, ModelDirectoryError
from common.text_tokenizer import read_json_object

_PACKAGES = ("torch", "transformers", "safetensors")
_ENDINGS = ("ForSequenceClassification", "ForTokenClassification")


def check_packages(key: str = "[[verifier.models]]") -> None:
    """Raise :class:`FatalError` unless the model process will find what ``key`` needs."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise FatalError(
            f"{key} needs {', '.join(missing)}, not installed here "
            "(install headrace[cpu] or headrace[gpu])"
        )


def check_classifier(model: VerifierModelConfig) -> None:
    """Raise :class:`ModelDirectoryError` unless ``model.path`` looks like a causal classifier.

    Weights are proven when they are loaded.
    """
    directory = Path(model.path)
    config = read_json_object(directory / "config.json")
    if not config:
        raise ModelDirectoryError(
            f"{directory}: no config.json (verifier.models.path must name a Hugging Face model "
            "directory)"
        )
    architectures = config.get("architectures") or []
    if not any(str(name).endswith(_ENDINGS) for name in architectures):
        raise ModelDirectoryError(
            f"{directory}/config.json: architectures must name a sequence or token classifier, got "
            f"{architectures} (save the model as a classifier, such as "
            "Qwen2ForSequenceClassification)"
        )
    if not any(directory.glob("*.safetensors")):
        raise ModelDirectoryError(
            f"{directory}: no safetensors (save the model with save_pretrained)"
        )
