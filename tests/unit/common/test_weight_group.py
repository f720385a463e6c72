"""The rules of weight groups that need no second process."""

from __future__ import annotations

import pytest

from common.errors import WeightTransferError
from common.messages import FleetMember, TransferGroup
from common.torch.weight_group import (
    choose_backend,
    connect_store,
    operation_deadline_s,
    serve_store,
    wait_for_key,
)
from common.torch.weight_rendezvous import TransferGuest, TransferHost
from common.types import Role
from tests.builders import version


def _member(name: str, pid: int = 1) -> FleetMember:
    return FleetMember(
        role=Role.ACTOR, name=name, host="here", pid=pid, silent_s=0.0, serving=version(0)
    )


def _host() -> TransferHost:
    return TransferHost(run_id="run", interface="127.0.0.1", deadline_s=5.0, ready_window_s=0.05)


def test_deadlines_grow_with_the_bytes_up_to_the_longest() -> None:
    assert operation_deadline_s(0, 30.0) == 5.0
    assert operation_deadline_s(200_000_000, 30.0) == 15.0
    assert operation_deadline_s(10**12, 30.0) == 30.0
    assert operation_deadline_s(0, 2.0) == 2.0


@pytest.mark.parametrize(
    ("gpus", "backend"),
    [
        (["a", "b"], "nccl"),
        (["a", "a"], "gloo"),
        (["a", ""], "gloo"),
        (["", ""], "gloo"),
        (["a"], "gloo"),
    ],
)
def test_nccl_needs_a_gpu_of_its_own_for_every_member(gpus: list[str], backend: str) -> None:
    assert choose_backend(gpus) == backend


def test_the_same_members_keep_their_number_and_others_get_a_new_one() -> None:
    host = _host()
    first = host.transfer_for([_member("a"), _member("b")])
    again = host.transfer_for([_member("b"), _member("a")])
    assert first is not None
    assert again == first
    assert first.members == ("a", "b")
    restarted = host.transfer_for([_member("a"), _member("b", pid=2)])
    assert restarted is not None
    assert restarted.number == first.number + 1
    assert restarted.token != first.token
    host.close()


def test_nobody_there_means_no_group() -> None:
    host = _host()
    assert host.transfer_for([]) is None
    host.close()


def test_a_transfer_without_a_ready_member_is_an_error_within_the_window() -> None:
    host = _host()
    transfer = host.transfer_for([_member("a")])
    assert transfer is not None
    with pytest.raises(WeightTransferError, match="none of 1 members is ready"):
        host.open(transfer, version(1))
    host.close()


def test_a_stranger_to_the_group_does_not_even_connect() -> None:
    transfer = TransferGroup(
        number=1, store_host="127.0.0.1", store_port=1, token="t", members=("a",)
    )
    guest = TransferGuest(run_id="run", member="b", deadline_s=5.0)
    with pytest.raises(WeightTransferError, match="no member of group 1"):
        guest.open(transfer, version(1))


def test_a_store_that_is_gone_is_a_transfer_error() -> None:
    store = serve_store("127.0.0.1", 5.0)
    port = store.port
    del store
    with pytest.raises(WeightTransferError, match="no weight store answers"):
        connect_store("127.0.0.1", port, 0.2)


def test_an_unusable_interface_names_the_setting() -> None:
    with pytest.raises(WeightTransferError, match=r"weights\.interface '192\.0\.2\.1'"):
        serve_store("192.0.2.1", 0.2)


def test_a_key_that_nobody_sets_is_given_up_in_time() -> None:
    store = serve_store("127.0.0.1", 5.0)
    store.set("there", "yes")
    assert wait_for_key(store, "there", 0.0) == b"yes"
    with pytest.raises(WeightTransferError, match="absent was not set"):
        wait_for_key(store, "absent", 0.02)
