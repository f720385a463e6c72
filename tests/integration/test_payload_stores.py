"""Payloads in stores and at actors, with every role as a process of its own: nothing is lost that
was promised, what is lost is sampled again, and each answer is counted once.
"""

from __future__ import annotations

from pathlib import Path

from tests.integration.store_runs import check_every_answer_once, roles, write_run


def test_a_run_goes_through_two_stores_and_leaves_nothing_in_them(tmp_path: Path) -> None:
    config = write_run(tmp_path, payloads="store", count=2)
    names = ("broker", "store-0", "store-1", "verifier-0", "collector")
    with roles(config, *names) as run:
        run.start("actor-0", "--pause-after", "32")
        held = "headrace_payload_bytes"
        run.wait_until(lambda: min(run.metric(name, held) for name in names[1:3]) > 0)
        run.kill("actor-0")
        run.start("actor-1")
        run.wait_until(run.is_collected)
        run.wait_until(lambda: sum(run.metric(name, held) for name in names[1:3]) == 0)
        assert run.metric("broker", "headrace_payloads_lost_total") == 0
        assert run.metric("broker", "headrace_conservation_imbalance") == 0
    check_every_answer_once(tmp_path / "out")


def test_a_store_that_was_killed_and_started_again_has_all_that_it_acknowledged(
    tmp_path: Path,
) -> None:
    config = write_run(tmp_path, payloads="store", count=2)
    with roles(config, "broker", "store-0", "store-1") as run:
        run.start("actor-0", "--pause-after", "32")
        run.wait_until(lambda: run.metric("actor-0", "headrace_rollouts_total") == 32)
        run.wait_until(lambda: run.num_submitted() >= 32)
        for name in ("store-0", "store-1"):
            run.kill(name)
        run.kill("actor-0")
        run.start("verifier-0")
        run.start("collector")
        run.start("store-1")
        run.start("store-0")
        run.start("actor-1")
        run.wait_until(run.is_collected)
        assert run.metric("broker", "headrace_payloads_lost_total") == 0
        assert run.metric("broker", "headrace_conservation_imbalance") == 0
    check_every_answer_once(tmp_path / "out")


def test_the_rollouts_of_a_killed_direct_actor_are_sampled_again_and_counted(
    tmp_path: Path,
) -> None:
    config = write_run(tmp_path, payloads="direct")
    with roles(config, "broker") as run:
        run.start("actor-0", "--pause-after", "30")
        held = "headrace_payload_bytes"
        run.wait_until(lambda: run.metric("actor-0", held) > 0)
        run.wait_until(lambda: run.num_submitted() >= 30)
        run.kill("actor-0")
        run.start("verifier-0")
        run.start("collector")
        run.start("actor-1")
        run.wait_until(run.is_collected)
        assert run.metric("broker", "headrace_payloads_lost_total") >= 20
        assert run.metric("broker", "headrace_conservation_imbalance") == 0
    check_every_answer_once(tmp_path / "out")


def test_a_direct_actor_that_starts_again_has_lost_what_it_held(tmp_path: Path) -> None:
    config = write_run(tmp_path, payloads="direct", dead_after_s=30.0)
    with roles(config, "broker") as run:
        run.start("actor-0", "--pause-after", "30")
        run.wait_until(lambda: run.num_submitted() >= 30)
        run.kill("actor-0")
        run.start("actor-0")
        run.wait_until(lambda: run.metric("broker", "headrace_payloads_lost_total") >= 20)
        run.start("verifier-0")
        run.start("collector")
        run.wait_until(run.is_collected)
    check_every_answer_once(tmp_path / "out")
