"""The filter, executed by a small interpreter of its own instructions, refuses what it should."""

from __future__ import annotations

import struct

import pytest

from actors.verification.sandbox.seccomp import REFUSED, Filters, assemble

_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_X86_64, _I386, _AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7


def _decide(filters: Filters, arch: int, number: int, *arguments: int) -> int:
    """Of what two installed filters say the kernel does the gravest."""
    said = {_run(program, arch, number, *arguments) for program in filters}
    return _KILL if _KILL in said else max(said - {_ALLOW}, default=_ALLOW)


def _run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would do: classic BPF over ``struct seccomp_data``."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, arch, 0, *padded)
    value, at = 0, 0
    for _ in range(len(program) // 8 + 1):
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}
            at += if_true if holds[code] else if_false
    raise AssertionError("the program does not end")


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", _X86_64), ("aarch64", _AARCH64)])
def test_every_listed_call_is_refused_and_its_neighbours_are_not(machine: str, arch: int) -> None:
    filters = assemble(machine)
    numbers = set(REFUSED[machine].values())
    allowed = set(range(470)) - numbers - {435}
    assert {_decide(filters, arch, number) for number in numbers} == {_EPERM}
    special = {53, 199, 261, 302} & {n for n in allowed if _decide(filters, arch, n) != _ALLOW}
    assert {_decide(filters, arch, number) for number in allowed - special} == {_ALLOW}
    assert max(len(program) // 8 for program in filters) < 4096


@pytest.mark.parametrize("arch", [_I386, _AARCH64, 0])
def test_a_foreign_architecture_ends_the_process(arch: int) -> None:
    assert _decide(assemble("x86_64"), arch, 1) == _KILL


def test_the_x32_table_ends_the_process() -> None:
    assert _decide(assemble("x86_64"), _X86_64, 0x40000000 | 41) == _KILL


@pytest.mark.parametrize(
    ("number", "arguments", "decision"),
    [
        (56, (0x11,), _ALLOW),
        (56, (0x003D0F00,), _ALLOW),
        (56, (0x10000011,), _EPERM),
        (56, (0x00020011,), _EPERM),
        (56, (0x00000080,), _EPERM),
        (56, (0x02000000,), _EPERM),
        (435, (), _ENOSYS),
        (53, (1, 1), _ALLOW),
        (53, (2, 1), _EPERM),
        (53, (40, 1), _EPERM),
        (302, (0, 7), _ALLOW),
        (302, (1, 7), _EPERM),
        (16, (0, 0x5401), _ALLOW),
        (16, (0, 0x5412), _EPERM),
        (16, (0, 0x541C), _EPERM),
        (16, (0, 0x5412 | 1 << 40), _EPERM),
    ],
)
def test_some_calls_depend_on_their_arguments(
    number: int, arguments: tuple[int, ...], decision: int
) -> None:
    assert _decide(assemble("x86_64"), _X86_64, number, *arguments) == decision


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", _X86_64), ("aarch64", _AARCH64)])
def test_a_launcher_may_make_boxes_and_nothing_else_that_is_refused(
    machine: str, arch: int
) -> None:
    early, late = assemble(machine)
    refused = REFUSED[machine]
    allowed = {name for name, number in refused.items() if _run(early, arch, number) == _ALLOW}
    assert allowed == {"mount"}
    assert _run(late, arch, refused["mount"]) == _EPERM
    clone = {"x86_64": 56, "aarch64": 220}[machine]
    new_namespaces = 0x20020000
    assert _run(early, arch, clone, new_namespaces) == _ALLOW
    assert _run(late, arch, clone, new_namespaces) == _EPERM


def test_what_is_installed_each_time_is_short() -> None:
    assert len(assemble("x86_64").late) // 8 < 20


def test_a_machine_without_a_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        assemble("riscv64")
