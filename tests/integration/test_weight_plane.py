"""Weights from a learner's memory into an actor's staging: whole and proven, or not at all."""

from __future__ import annotations

import multiprocessing.connection
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch

from common.codec import pack, pack_manifest
from common.errors import WeightTransferError
from common.torch.weight_rendezvous import TransferGuest, TransferHost
from tests.builders import version
from tests.integration.weight_plane import (
    DEADLINE_S,
    EXIT_BY_SOURCE,
    RUN,
    WAIT_S,
    announce,
    die_in_process,
    make_agent,
    make_host,
    published,
    receive_in_process,
    same_tensors,
    send,
)
from tests.ranks import warm_processes


@pytest.fixture
def host() -> Iterator[TransferHost]:
    host = make_host()
    yield host
    host.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_two_actors_receive_the_same_bits_and_keep_the_group_for_the_next_version(
    tmp_path: Path, host: TransferHost, threads: ThreadPoolExecutor
) -> None:
    agents = [make_agent(tmp_path, name) for name in ("a", "b")]
    groups = []
    for step in (1, 2):
        sent = published(tmp_path, step, announce(host, "a", "b"))
        receiving = [
            threads.submit(agent.receive, sent.announcement, sent.manifest) for agent in agents
        ]
        groups.append(host.open(announce(host, "a", "b"), sent.manifest.version))
        send(groups[-1], sent)
        for agent, staged in zip(
            agents, [future.result(WAIT_S) for future in receiving], strict=True
        ):
            assert staged.source == "group"
            assert staged.version == version(step)
            assert same_tensors(dict(staged.tensors), sent)
            agent.release(staged)
    assert groups[0] is groups[1]


def test_an_actor_that_is_not_there_is_left_out_and_the_others_receive(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    host = make_host(ready_window_s=0.5)
    sent = published(tmp_path, 1, announce(host, "a", "dead"))
    agent = make_agent(tmp_path, "a")
    receiving = threads.submit(agent.receive, sent.announcement, sent.manifest)
    send(host.open(announce(host, "a", "dead"), sent.manifest.version), sent)
    assert receiving.result(WAIT_S).source == "group"
    host.close()


def test_an_actor_that_comes_too_late_pulls(tmp_path: Path) -> None:
    host = make_host(ready_window_s=0.05)
    sent = published(tmp_path, 1, announce(host, "a"))
    with pytest.raises(WeightTransferError, match="none of 1"):
        host.open(announce(host, "a"), sent.manifest.version)
    agent = make_agent(tmp_path, "a")
    staged = agent.receive(sent.announcement, sent.manifest)
    assert (staged.source, same_tensors(dict(staged.tensors), sent)) == ("pull", True)
    assert "planned without this member" in agent.last_group_error
    host.close()


def test_an_announcement_without_a_group_is_pulled(tmp_path: Path) -> None:
    sent = published(tmp_path, 3, None)
    staged = make_agent(tmp_path, "a").receive(sent.announcement, sent.manifest)
    assert (staged.source, same_tensors(dict(staged.tensors), sent)) == ("pull", True)


def test_a_zombie_of_an_old_number_cannot_join_the_new_group(
    tmp_path: Path, host: TransferHost, threads: ThreadPoolExecutor
) -> None:
    old = announce(host, "a", "b")
    sent = published(tmp_path, 1, announce(host, "a"))
    zombie = TransferGuest(run_id=RUN, member="a", deadline_s=0.5)
    agent = make_agent(tmp_path, "a")
    refused = threads.submit(zombie.open, old, version(1))
    receiving = threads.submit(agent.receive, sent.announcement, sent.manifest)
    send(host.open(announce(host, "a"), version(1)), sent)
    assert receiving.result(WAIT_S).source == "group"
    with pytest.raises(WeightTransferError, match="was not set within"):
        refused.result(WAIT_S)


def test_a_guessed_number_without_the_token_meets_nobody(
    tmp_path: Path, host: TransferHost, threads: ThreadPoolExecutor
) -> None:
    transfer = announce(host, "a")
    forged = msgspec.structs.replace(transfer, token="0" * 16)
    guest = TransferGuest(run_id=RUN, member="a", deadline_s=0.5)
    refused = threads.submit(guest.open, forged, version(1))
    with pytest.raises(WeightTransferError, match="was not set within"):
        refused.result(WAIT_S)


def test_a_bit_flipped_on_the_way_is_caught_and_pulled_instead(
    tmp_path: Path, host: TransferHost, threads: ThreadPoolExecutor
) -> None:
    sent = published(tmp_path, 1, announce(host, "a"))
    agent = make_agent(tmp_path, "a")
    receiving = threads.submit(agent.receive, sent.announcement, sent.manifest)
    group = host.open(announce(host, "a"), version(1))
    for number, bucket in enumerate(sent.buckets()):
        flat = sent.flat(bucket)
        if number == 1:
            flat.view(torch.int32)[5] ^= 1 << 20
        group.broadcast(flat)
    staged = receiving.result(WAIT_S)
    assert staged.source == "pull"
    assert same_tensors(dict(staged.tensors), sent)
    assert "1 of 4 tensors of 0.1 arrived changed: layer.up" in agent.last_group_error


@pytest.mark.parametrize("num_sent", [0, 1, 2])
def test_a_learner_that_breaks_off_after_any_bucket_leaves_the_actor_to_pull(
    tmp_path: Path, threads: ThreadPoolExecutor, num_sent: int
) -> None:
    host = make_host()
    sent = published(tmp_path, 1, announce(host, "a"))
    agent = make_agent(tmp_path, "a")
    receiving = threads.submit(agent.receive, sent.announcement, sent.manifest)
    group = host.open(announce(host, "a"), version(1))
    for bucket in list(sent.buckets())[:num_sent]:
        group.broadcast(sent.flat(bucket))
    host.close()
    staged = receiving.result(3 * DEADLINE_S)
    assert (staged.source, same_tensors(dict(staged.tensors), sent)) == ("pull", True)


def test_after_a_broken_transfer_the_next_one_uses_a_new_group(
    tmp_path: Path, host: TransferHost, threads: ThreadPoolExecutor
) -> None:
    agent = make_agent(tmp_path, "a")
    first = published(tmp_path, 1, announce(host, "a"))
    receiving = threads.submit(agent.receive, first.announcement, first.manifest)
    broken = host.open(announce(host, "a"), version(1))
    for bucket in first.buckets():
        broken.broadcast(first.flat(bucket) + 1)
    agent.release(receiving.result(WAIT_S))
    second = published(tmp_path, 2, announce(host, "a"))
    receiving = threads.submit(agent.receive, second.announcement, second.manifest)
    group = host.open(announce(host, "a"), version(2))
    send(group, second)
    staged = receiving.result(WAIT_S)
    assert group is not broken
    assert (staged.source, same_tensors(dict(staged.tensors), second)) == ("group", True)


def test_a_pull_that_is_corrupt_too_is_an_error_and_costs_no_staging_buffer(
    tmp_path: Path,
) -> None:
    bad, good = published(tmp_path, 1, None), published(tmp_path, 2, None)
    file = tmp_path / "0.1" / "model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    agent = make_agent(tmp_path, "a")
    for _ in range(3):
        with pytest.raises(WeightTransferError, match="arrived changed: head"):
            agent.receive(bad.announcement, bad.manifest)
    assert same_tensors(dict(agent.receive(good.announcement, good.manifest).tensors), good)


def test_a_manifest_that_is_not_the_announced_one_is_refused(tmp_path: Path) -> None:
    sent, other = published(tmp_path, 1, None), published(tmp_path, 2, None)
    agent = make_agent(tmp_path, "a")
    with pytest.raises(WeightTransferError, match=r"manifest of 0\.1 describes 0\.2"):
        agent.receive(sent.announcement, other.manifest)
    swapped = msgspec.structs.replace(sent.manifest, tensors=other.manifest.tensors)
    with pytest.raises(WeightTransferError, match="announced was"):
        agent.receive(sent.announcement, swapped)


def test_two_versions_can_be_staged_at_once_and_no_third(tmp_path: Path) -> None:
    agent = make_agent(tmp_path, "a")
    agent._deadline_s = 0.05
    sent = [published(tmp_path, step, None) for step in (1, 2, 3)]
    staged = [agent.receive(item.announcement, item.manifest) for item in sent[:2]]
    with pytest.raises(WeightTransferError, match="no staging buffer was free"):
        agent.receive(sent[2].announcement, sent[2].manifest)
    assert same_tensors(dict(staged[0].tensors), sent[0])
    agent.release(staged[0])
    assert same_tensors(
        dict(agent.receive(sent[2].announcement, sent[2].manifest).tensors), sent[2]
    )
    assert same_tensors(dict(staged[1].tensors), sent[1])


def test_a_restarted_learner_is_met_at_its_new_store(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    agent = make_agent(tmp_path, "a")
    for step in (1, 2):
        host = make_host()
        sent = published(tmp_path, step, announce(host, "a"))
        receiving = threads.submit(agent.receive, sent.announcement, sent.manifest)
        send(host.open(announce(host, "a"), version(step)), sent)
        staged = receiving.result(WAIT_S)
        assert (staged.source, same_tensors(dict(staged.tensors), sent)) == ("group", True)
        agent.release(staged)
        host.close()


def test_a_receiver_that_stops_reading_costs_the_learner_one_deadline(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    host = TransferHost(run_id=RUN, interface="127.0.0.1", deadline_s=1.0, ready_window_s=WAIT_S)
    transfer = announce(host, "frozen")
    sent = published(tmp_path, 1, transfer, large=True)
    guest = TransferGuest(run_id=RUN, member="frozen", deadline_s=1.0)
    joined = threads.submit(guest.open, transfer, version(1))
    group = host.open(transfer, version(1))
    assert joined.result(WAIT_S).is_usable
    began_s = time.monotonic()
    with pytest.raises(WeightTransferError, match="broadcast failed"):
        send(group, sent)
    assert 0.9 < time.monotonic() - began_s < 4.0
    host.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_buckets", [0, 1, 2])
def test_a_member_killed_between_buckets_costs_the_others_a_deadline_at_most(
    tmp_path: Path, threads: ThreadPoolExecutor, num_buckets: int
) -> None:
    host = make_host()
    transfer = announce(host, "survivor", "victim")
    sent = published(tmp_path, 1, transfer, large=True)
    wire = (pack(sent.announcement), pack_manifest(sent.manifest))
    processes = warm_processes()
    begin = processes.Barrier(3)
    survivor = processes.Process(
        target=receive_in_process, args=(begin, str(tmp_path), "survivor", *wire)
    )
    victim = processes.Process(target=die_in_process, args=(begin, "victim", *wire, num_buckets))
    survivor.start()
    victim.start()
    begin.wait(60.0)
    died_s = threads.submit(_time_of_death_s, victim.sentinel)
    # One that dies at once may be gone before the others have all connected to it.
    with pytest.raises(WeightTransferError, match="broadcast failed|did not form"):
        send(host.open(transfer, version(1)), sent)
    assert time.monotonic() - died_s.result(WAIT_S) < 2 * DEADLINE_S
    survivor.join(60.0)
    victim.join(60.0)
    assert victim.exitcode == -signal.SIGKILL
    # The last bucket may have reached the survivor before the sender noticed the dead one.
    allowed = ["pull", "group"] if num_buckets == 2 else ["pull"]
    assert survivor.exitcode in [EXIT_BY_SOURCE[source] for source in allowed]
    host.close()


def _time_of_death_s(sentinel: int) -> float:
    multiprocessing.connection.wait([sentinel])
    return time.monotonic()
