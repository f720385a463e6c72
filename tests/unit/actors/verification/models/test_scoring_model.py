"""Packed forwards, with and without shared prefixes, equal the model's own, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.verification.models.batching import plan_batches
from actors.verification.models.frames import ForwardRequest
from actors.verification.models.layout import flat_places, joined_tokens, lay_out, tree_shapes
from common.arrays import Float32Array, Int32Array
from common.errors import DataError, ModelDirectoryError, WeightLoadError, WeightTransferError
from common.torch import scoring_model
from common.torch.attention import attention_implementation, tree_block_mask, tree_mask
from common.torch.scoring_model import ScoringModel, resolve_dtype
from common.torch.weight_files import MANIFEST_FILE, TENSORS_FILE, write_version
from tests.tiny_models import publish
from tests.unit.actors.verification.models.tiny_scorers import (
    random_tokens,
    save_policy,
    save_scorer,
)

PROMPT = list(range(10, 40))


def _load(directory: Path, head: str = "score") -> ScoringModel:
    return ScoringModel.load(directory, head, device="cpu", dtype="float32", max_tokens=512)


def _packed_outputs(
    model: ScoringModel,
    sequences: list[Int32Array],
    wanted: list[Int32Array],
    *,
    keys: list[object] | None = None,
    budget: int = 256,
    targets: list[Int32Array] | None = None,
    temperature: float = 1.0,
) -> list[Float32Array]:
    """Outputs of each sequence from the packed path, in the order given."""
    found: dict[int, Float32Array] = {}
    names = keys or list(range(len(sequences)))
    for batch in plan_batches(sequences, names, budget_tokens=budget):
        request = ForwardRequest(model="m", row_length=batch.row_length, rows=tree_shapes(batch))
        layout = lay_out(request, joined_tokens(batch, sequences))
        rows = (layout.input_ids, layout.position_ids, layout.document_ids, layout.branch_ids)
        hidden = model.hidden_states(*map(torch.from_numpy, rows))
        for member, places in zip(batch.members, flat_places(batch, wanted), strict=True):
            chosen = hidden[torch.from_numpy(places.astype(np.int64))]
            if targets is None:
                found[member] = model.scores(chosen).numpy()
            else:
                ids = torch.from_numpy(targets[member].astype(np.int64))
                found[member] = model.logprobs(chosen, ids, temperature).numpy()
    return [found[number] for number in range(len(sequences))]


@torch.no_grad()
def _own_scores(model: Any, sequence: Int32Array) -> Float32Array:
    """The classifier's own answer for one sequence, without packing."""
    logits: Float32Array = model(input_ids=torch.from_numpy(sequence.astype(np.int64))[None]).logits
    return np.asarray(logits)


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
@pytest.mark.parametrize("shared", [True, False])
def test_packed_scores_equal_those_of_the_model_one_by_one(
    tmp_path: Path, family: str, shared: bool
) -> None:
    own = save_scorer(tmp_path, family=family, num_labels=2)
    sequences = random_tokens([35, 50, 31, 64, 33, 90], seed=1, start=PROMPT)
    last = [np.array([len(sequence) - 1], dtype=np.int32) for sequence in sequences]
    keys: list[object] = ["group"] * 6 if shared else list(range(6))
    packed = _packed_outputs(_load(tmp_path), sequences, last, keys=keys)
    for sequence, outputs in zip(sequences, packed, strict=True):
        np.testing.assert_allclose(outputs, _own_scores(own, sequence), atol=1e-5)
    assert np.ptp([outputs[0, 0] for outputs in packed]) > 1e-2


def test_a_token_classifier_is_read_at_every_place_that_was_asked_for(tmp_path: Path) -> None:
    own = save_scorer(tmp_path, head="Token", num_labels=2)
    sequences = random_tokens([40, 45], seed=2, start=PROMPT)
    places = [np.array([5, 29, 30, 39], dtype=np.int32), np.array([31, 44], dtype=np.int32)]
    packed = _packed_outputs(_load(tmp_path), sequences, places, keys=["g", "g"])
    for sequence, wanted, outputs in zip(sequences, places, packed, strict=True):
        np.testing.assert_allclose(outputs, _own_scores(own, sequence)[0, wanted], atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_behind_a_shared_prompt_equal_a_plain_forward(
    policy_dir: Path, temperature: float
) -> None:
    model = _load(policy_dir, "logprobs")
    sequences = random_tokens([34, 60, 41], seed=3, start=PROMPT)
    wanted = [np.arange(29, len(ids) - 1, dtype=np.int32) for ids in sequences]
    targets = [ids[30:] for ids in sequences]
    packed = _packed_outputs(
        model, sequences, wanted, keys=["g"] * 3, targets=targets, temperature=temperature
    )
    own = save_policy(policy_dir)
    for sequence, outputs in zip(sequences, packed, strict=True):
        ids = torch.from_numpy(sequence.astype(np.int64))[None]
        with torch.no_grad():
            table = (own(input_ids=ids).logits[0] / temperature).log_softmax(-1)
        expected = table[29:-1].gather(-1, ids[0, 30:, None]).squeeze(-1)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_block_sparse_attention_gives_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save_scorer(tmp_path)
    monkeypatch.setattr(scoring_model, "attention_implementation", lambda device: "flex_attention")
    sequences = random_tokens([35, 50, 31], seed=1, start=PROMPT)
    last = [np.array([len(sequence) - 1], dtype=np.int32) for sequence in sequences]
    with torch.compiler.set_stance("force_eager"):  # compiling it for a CPU takes half a minute
        packed = _packed_outputs(_load(tmp_path), sequences, last, keys=["group"] * 3)
    for sequence, outputs in zip(sequences, packed, strict=True):
        np.testing.assert_allclose(outputs, _own_scores(own, sequence), atol=1e-5)


def test_a_branch_sees_its_trunk_and_itself_and_nothing_else() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 1, -1]])
    branches = torch.tensor([[0, 1, 1, 2, 0, 0]])
    assert tree_mask(documents, branches)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_block_mask_of_flex_attention_says_the_same_as_the_dense_one() -> None:
    documents = torch.tensor([[0] * 100 + [1] * 60 + [-1] * 40, [0] * 200])
    branches = torch.tensor([[0] * 50 + [1] * 20 + [2] * 30 + [0] * 100, [0] * 150 + [1] * 50])
    mask_mod = tree_block_mask(documents, branches).mask_mod
    rows, places = torch.arange(2)[:, None, None], torch.arange(200)
    allowed = mask_mod(rows, None, places[:, None], places[None, :])
    assert torch.equal(allowed, tree_mask(documents, branches)[:, 0])


def test_token_ids_that_do_not_fit_the_rows_are_refused() -> None:
    (sequence,) = random_tokens([9], seed=4)
    (batch,) = plan_batches([sequence], ["a"], budget_tokens=16)
    request = ForwardRequest(model="m", row_length=9, rows=tree_shapes(batch))
    for wrong in (sequence[:-1], np.append(sequence, sequence)):
        with pytest.raises(DataError, match="token ids"):
            lay_out(request, wrong)


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_scorer(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("score.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelDirectoryError, match=r"1 weights are missing, first score\.weight"):
        _load(tmp_path)


def test_a_directory_of_another_kind_is_refused(policy_dir: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="must name a sequence or token classifier"):
        _load(policy_dir)


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(WeightLoadError, match=r"'cuda:31' is not there"):
        ScoringModel.load(Path(), "score", device="cuda:31", dtype="auto", max_tokens=1)


@pytest.mark.parametrize(
    ("capability", "implementation"), [((9, 0), "flex_attention"), ((7, 5), "sdpa")]
)
def test_attention_is_block_sparse_on_gpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], implementation: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention_implementation(torch.device("cuda")) == implementation
    assert attention_implementation(torch.device("cpu")) == "sdpa"


def test_weights_are_float32_on_a_cpu_and_bfloat16_on_a_gpu_unless_said() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def _published(root: Path, policy: Any, step: int) -> Path:
    staged, manifest, _ = publish(policy, step)
    flat = [tensor.reshape(-1) for tensor in staged.values()]
    return write_version(root, manifest, [torch.cat(flat)])


def _change(policy: Any) -> None:
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.3)


def test_published_weights_replace_the_model_directory(policy_dir: Path, tmp_path: Path) -> None:
    model = _load(policy_dir, "logprobs")
    policy = save_policy(tmp_path / "other")
    _change(policy)
    _published(tmp_path, policy, 7)
    _, manifest, version = publish(policy, 7)
    model.use_version(tmp_path, version)
    assert model.version == version == manifest.version
    (ids,) = random_tokens([20], seed=5)
    wanted, targets = np.arange(19, dtype=np.int32), ids[1:]
    (found,) = _packed_outputs(model, [ids], [wanted], targets=[targets])
    with torch.no_grad():
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        table = policy(input_ids=tokens).logits[0].log_softmax(-1)
    expected = table[:-1].gather(-1, tokens[0, 1:, None]).squeeze(-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("harm", ["bits", "manifest", "missing", "foreign"])
def test_weights_that_are_not_proven_leave_the_old_ones_whole(
    policy_dir: Path, tmp_path: Path, harm: str
) -> None:
    model = _load(policy_dir, "logprobs")
    before = [weight.clone() for weight in model._model.parameters()]
    policy = save_policy(tmp_path / "other")
    _change(policy)
    _, _, version = publish(policy, 7)
    directory = _published(tmp_path, policy, 7)
    _harm(directory, harm)
    with pytest.raises(WeightTransferError):
        model.use_version(tmp_path, version)
    assert model.version is None
    after = list(model._model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def _harm(directory: Path, harm: str) -> None:
    tensors, manifest = directory / TENSORS_FILE, directory / MANIFEST_FILE
    tensors.chmod(0o644)
    manifest.chmod(0o644)
    if harm == "bits":
        data = bytearray(tensors.read_bytes())
        data[-3] ^= 1
        tensors.write_bytes(data)
    elif harm == "manifest":
        manifest.write_text(manifest.read_text().replace("[[0,7]", "[[0,8]"))
    elif harm == "missing":
        tensors.unlink()
    else:
        text = manifest.read_text().replace("model.norm.weight", "model.norm.wEight")
        manifest.write_text(text)
        tensors.write_bytes(
            tensors.read_bytes().replace(b"model.norm.weight", b"model.norm.wEight")
        )
