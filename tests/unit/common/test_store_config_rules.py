"""Rules of [stores]: each says rule, value and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config_loader import load_config
from common.errors import ConfigError

BASE = """
[run]
directory = "run"
[model]
path = "model"
[prompts]
generator = "chain-addition"
"""
DIRECT = (
    BASE
    + """
[stores]
payloads = "direct"
direct_bytes = {direct_bytes}
[actor]
count = {count}
max_tokens = 1024
[learner]
groups_per_step = 32
group_size = 8
max_policy_lag = 2
"""
)
GROUP_BYTES = 8 * 4 * (2048 + 1024)


def _load(folder: Path, text: str) -> None:
    path = folder / "run.toml"
    path.write_text(text)
    load_config(path)


@pytest.mark.parametrize("count", [1, 5])
def test_direct_memory_must_hold_the_open_groups_however_they_fall(
    tmp_path: Path, count: int
) -> None:
    least = (-(-96 // count) + 1) * GROUP_BYTES
    _load(tmp_path, DIRECT.format(direct_bytes=least, count=count))
    with pytest.raises(ConfigError, match=rf"stores.direct_bytes must hold .* {least} bytes, got"):
        _load(tmp_path, DIRECT.format(direct_bytes=least - 1, count=count))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('endpoint = "udp://a:1"', 'stores.endpoint must be "ipc" or "tcp://host:port"'),
        ('endpoint = "tcp://*:0"', "is neither encrypted nor authenticated"),
        ("max_bytes = 67108865", "stores.max_bytes must be at least twice"),
        ("count = 0", "stores.count must be >= 1, got 0"),
        ('payloads = "shop"', "stores.payloads"),
    ],
)
def test_each_bad_value_has_its_error(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint.replace("*", r"\*")):
        _load(tmp_path, f"{BASE}[stores]\n{line}\n")


def test_tcp_without_keys_must_be_asked_for_by_name(tmp_path: Path) -> None:
    _load(
        tmp_path,
        f'{BASE}[stores]\nendpoint = "tcp://*:0"\n[broker]\nallow_plaintext_tcp = true\n',
    )
