"""A transfer cut off after any tensor leaves the engine on its old weights, bit for bit."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actors.generation.transformers_sampler import TransformersOptions, TransformersSampler
from actors.generation.weight_agent import WeightAgent
from common.errors import WeightTransferError
from common.messages import PublishWeights
from common.torch.weight_files import write_version
from common.types import WeightVersion
from tests.builders import version
from tests.integration.weight_plane import DEADLINE_S, RUN, WAIT_S, announce, make_host
from tests.tiny_models import make_tiny_qwen2, publish, train_step

ONE_TENSOR_A_BUCKET = 1
PROBE = [5, 6, 7, 8, 9, 10, 11, 12]
NUM_TENSORS = 26
"""Of the two-layer model with tied embeddings, biases and norms included."""


def agent_of(folder: Path) -> WeightAgent:
    return WeightAgent(
        run_id=RUN,
        member="a",
        directory=folder,
        bucket_bytes=ONE_TENSOR_A_BUCKET,
        deadline_s=DEADLINE_S,
    )


@pytest.mark.parametrize("num_sent", [0, 1, NUM_TENSORS // 2, NUM_TENSORS - 2, NUM_TENSORS - 1])
def test_the_engine_still_serves_the_old_weights(tmp_path: Path, num_sent: int) -> None:
    learner = make_tiny_qwen2(tmp_path / "model", tied=True)
    options = TransformersOptions(model_dir=tmp_path / "model", max_model_len=64)
    engine = TransformersSampler(options, version(0))
    before = engine.score(PROBE)
    train_step(learner, 1)
    staged, manifest, _ = publish(learner, 1)
    assert len(staged) == NUM_TENSORS
    host = make_host()
    directory = write_version(
        tmp_path / "weights", manifest, [one.view(-1) for one in staged.values()]
    )
    announcement = PublishWeights(
        version=manifest.version,
        manifest_digest=manifest.digest(),
        directory=str(directory),
        transfer=announce(host, "a"),
    )
    shutil.rmtree(directory)
    agent = agent_of(tmp_path / "weights")
    with ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(agent.receive, announcement, manifest)
        group = host.open(announce(host, "a"), manifest.version)
        for tensor in list(staged.values())[:num_sent]:
            group.broadcast(tensor.reshape(-1))
        host.close()
        with pytest.raises(WeightTransferError):
            receiving.result(WAIT_S)
    assert engine.serving_version == WeightVersion(incarnation=0, policy_step=0)
    assert not engine.is_partial
    np.testing.assert_array_equal(engine.score(PROBE), before)
    engine.load_weights(staged, manifest, manifest.version)
    assert not np.array_equal(engine.score(PROBE), before), "the probe must tell the two apart"
