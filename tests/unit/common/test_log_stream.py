from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.log_stream import LossyPipe, log_stream


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_pipe_that_nobody_reads_loses_lines_and_stops_no_writer(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = LossyPipe(writer)
    writing = threading.Thread(
        target=lambda: [stream.write(f"{n:099d}\n") for n in range(5_000)], daemon=True
    )
    writing.start()
    writing.join(timeout=20.0)
    assert not writing.is_alive()

    kept = os.read(reader, 1 << 20).decode().splitlines()
    assert kept == [f"{n:099d}" for n in range(len(kept))]
    num_lost = 5_000 - len(kept)
    assert num_lost == stream.num_dropped > 0

    stream.write("after\n")
    notice, last = os.read(reader, 1 << 20).decode().split()[-1], stream.num_dropped
    assert (notice, last) == ("after", 0)


def test_the_first_line_that_gets_through_is_preceded_by_how_many_did_not(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    stream = LossyPipe(writer)
    while not stream.num_dropped:
        stream.write("x" * 999 + "\n")
    stream.write("lost too\n")
    os.read(reader, 1 << 20)

    stream.write("heard\n")
    notice, heard = filter(None, os.read(reader, 1 << 20).decode().splitlines())
    assert json.loads(notice)["num"] == 2
    assert heard == "heard"


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole_if_there_is_room(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    text = "".join(f"{n:05d} " for n in range(5_000)) + "\n"

    assert LossyPipe(writer).write(text) == len(text)

    assert os.read(reader, 1 << 20).decode() == text


def test_a_reader_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = LossyPipe(writer)
    stream.write("to nobody\n")
    assert stream.num_dropped == 1
    os.close(writer)


def test_a_process_whose_standard_error_nobody_reads_goes_on() -> None:
    program = (
        "from common.logs import configure_logs\n"
        "log = configure_logs('run', 'broker', 'broker')\n"
        "for number in range(2000): log.info('x' * 200, number=number)\n"
        "print('done')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        watch = threading.Timer(30.0, process.kill)
        watch.start()
        try:
            assert process.stdout.read() == "done\n"
        finally:
            watch.cancel()
        lines = [json.loads(line) for line in process.stderr]
    assert 0 < len(lines) < 2_000
    assert [line["number"] for line in lines] == list(range(len(lines)))


def test_only_pipes_lose_lines(tmp_path: Path, pipe: tuple[int, int]) -> None:
    in_memory = io.StringIO()
    with (tmp_path / "log").open("w") as file:
        assert log_stream(file) is file
    assert log_stream(in_memory) is in_memory
    with os.fdopen(os.dup(pipe[1]), "w") as stream:
        assert isinstance(log_stream(stream), LossyPipe)
