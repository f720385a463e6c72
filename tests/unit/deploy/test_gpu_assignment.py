from __future__ import annotations

from deploy.gpu_assignment import assign_gpus, visible_gpus


def test_learner_ranks_and_actors_get_gpus_of_their_own() -> None:
    assert assign_gpus(["0", "1", "2", "3"], num_ranks=2, num_actors=2) == {
        "learner": "0,1",
        "actor-0": "2",
        "actor-1": "3",
    }


def test_more_actors_than_gpus_take_turns() -> None:
    assigned = assign_gpus(["4", "5", "6"], num_ranks=1, num_actors=3)
    assert assigned == {"learner": "4", "actor-0": "5", "actor-1": "6", "actor-2": "5"}


def test_actors_share_with_the_learner_when_it_takes_every_gpu() -> None:
    assigned = assign_gpus(["0", "1"], num_ranks=2, num_actors=1)
    assert assigned == {"learner": "0,1", "actor-0": "1"}


def test_one_gpu_or_none_is_left_as_it_is() -> None:
    assert assign_gpus([], num_ranks=1, num_actors=1) == {}
    assert assign_gpus(["0"], num_ranks=1, num_actors=1) == {}


def test_the_environment_limits_the_gpus() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-abc"}) == ["3", "GPU-abc"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
