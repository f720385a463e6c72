"""A real broker process with keys on a TCP port, and what tests ask of it."""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.endpoints import read_endpoint
from common.keys_cli import ROLES, make_keys
from common.security import ClientSecurity
from common.security_clients import CLIENTS_FILE
from common.security_keys import load_public
from common.transport import Channel
from common.types import Role
from tests.broker_process import BrokerProcess


@dataclass
class SecureBroker(BrokerProcess):
    """A broker on a TCP port of its own choice that lets in only who has a key.

    Without keys it is the plaintext broker that shows what they are good for.
    """

    endpoint: str = "tcp://127.0.0.1:0"
    has_keys: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        text = self.run_file.read_text()
        allow = "" if self.has_keys else "allow_plaintext_tcp = true\n"
        text = text.replace("[broker]\n", f'[broker]\nendpoint = "{self.endpoint}"\n{allow}')
        self.run_file.write_text(text + ('[security]\nkeys = "keys"\n' if self.has_keys else ""))
        make_keys(self.keys, [(role, "") for role in ROLES])

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def security(self, role: Role, name: str) -> ClientSecurity:
        return ClientSecurity.load(self.keys, role, name)

    async def connect(self, role: Role, name: str) -> Channel:
        security = self.security(role, name) if self.has_keys else None
        return await self.connect_with(role, name, security)

    async def connect_with(
        self, role: Role, name: str, security: ClientSecurity | None, timeout_s: float = 20.0
    ) -> Channel:
        endpoint = read_endpoint(self.config, self.paths)
        return await Channel.connect(
            role=role, name=name, endpoint=endpoint, security=security, timeout_s=timeout_s
        )

    def revoke(self, name: str) -> None:
        """Take the public key ``name.key`` off the list of clients."""
        key = load_public(self.keys / f"{name}.key").decode()
        file = self.keys / CLIENTS_FILE
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if key not in line))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, _, port = self.paths.endpoint_file.read_text().removeprefix("tcp://").rpartition(":")
        return host, int(port)

    def metric(self, name: str) -> float:
        """Sum of the samples of one metric, but for the heartbeats that channels send."""
        samples = re.findall(rf"^{name}({{.*}})? (\S+)$", self.page(), re.MULTILINE)
        return sum(float(value) for labels, value in samples if "Heartbeat" not in labels)

    def page(self) -> str:
        """The whole /metrics page."""
        state = json.loads((self.paths.ready / "broker.json").read_text())
        url = f"http://127.0.0.1:{state['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as page:
            text: str = page.read().decode()
        return text

    def rss_bytes(self) -> int:
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)
