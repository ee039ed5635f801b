"""The options of `priorvla serve`, checked before anything heavy is loaded: this module imports no deep learning."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...hub_cards.checkpoints import require_checkpoint
from ...training.run_options import require_device
from ..action_limits import read_action_limits
from ..compilation import require_compiler
from .server_limits import ServerLimits

DEVICES = ("cpu", "cuda")
API_KEY_VARIABLE = "PRIORVLA_API_KEY"
NEEDED = ("msgpack", "prometheus_client", "websockets")


@dataclass(frozen=True)
class ServingOptions:
    """What `priorvla serve` takes; defaults are the command's."""

    checkpoint: str
    embodiment: str | None = None
    backbone: str = "auto"
    device: str = "cpu"
    execute_steps: int | None = None
    action_limits: Path | None = None
    compile: bool = False
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_clients: int = ServerLimits.max_clients
    max_batch: int = ServerLimits.max_batch
    batch_window_ms: float = ServerLimits.batch_window_ms
    max_message_mb: float = ServerLimits.max_message_mb
    rate_limit: float = ServerLimits.rate_limit
    request_timeout: float = ServerLimits.request_timeout

    def check(self) -> None:
        """Checks everything that needs no checkpoint to be loaded (torch is loaded for `device="cuda"` alone).

        Raises:
            ValueError: naming the option and its value.
            FileNotFoundError: a file is missing, or `checkpoint` is neither a checkpoint's folder nor like a Hub id.
            ImportError: the extra 'serve' is not installed. RuntimeError: there is nothing to compile with.
        """
        if missing := [package for package in NEEDED if find_spec(package) is None]:
            raise ImportError(f"{', '.join(missing)} not installed: pip install 'priorvla[serve]'")
        require_checkpoint(self.checkpoint, "checkpoint")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port {self.port} must be from 0 (any free one) to 65535")
        if self.execute_steps is not None and self.execute_steps < 1:
            raise ValueError(f"--execute-steps {self.execute_steps} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must be at least 0")
        if self.action_limits is not None:
            read_action_limits(self.action_limits)
        self.limits()
        self.api_key()
        self.tls()
        require_device(self.device, DEVICES)
        if self.compile:
            require_compiler(self.device)

    def limits(self) -> ServerLimits:
        return ServerLimits(
            self.max_clients,
            self.max_batch,
            self.batch_window_ms,
            self.max_message_mb,
            self.rate_limit,
            self.request_timeout,
        )

    def api_key(self) -> str | None:
        """The key of `--api-key-file`, or else of the environment; None where there is neither.

        It is no option of its own, because everybody on a machine can read the command lines of its programs.
        """
        if self.api_key_file is not None:
            if not self.api_key_file.is_file():
                raise FileNotFoundError(f"--api-key-file {self.api_key_file} does not exist: name a file with the key")
            key, place = self.api_key_file.read_text(encoding="utf-8").strip(), f"--api-key-file {self.api_key_file}"
        elif API_KEY_VARIABLE in os.environ:
            key, place = os.environ[API_KEY_VARIABLE].strip(), f"the environment's {API_KEY_VARIABLE}"
        else:
            return None
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError(f"{place} holds no key: give one line of printable ASCII characters")
        return key

    def tls(self) -> ssl.SSLContext | None:
        """The server's side of TLS, where a certificate was given."""
        if self.tls_cert is None:
            if self.tls_key is not None:
                raise ValueError(f"--tls-key {self.tls_key} needs its certificate: give --tls-cert too")
            return None
        for name, file in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if file is not None and not file.is_file():
                raise FileNotFoundError(f"{name} {file} does not exist: give a PEM file")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except ssl.SSLError as error:
            raise ValueError(f"--tls-cert {self.tls_cert} and its key do not fit together: {error.reason}") from None
        return context

    def warning(self) -> str | None:
        """What is dangerous about these options, if anything."""
        if self.api_key() is not None or _is_loopback(self.host):
            return None
        return (
            f"Warning: whoever reaches {self.host or 'this machine'}:{self.port} is served. Give --api-key-file, or "
            f"{API_KEY_VARIABLE} in the environment."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["API_KEY_VARIABLE", "DEVICES", "ServingOptions"]
