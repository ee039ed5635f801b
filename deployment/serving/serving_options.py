"""The options of `priorvla serve`, checked before anything heavy is loaded: this module imports no deep learning."""

from __future__ import annotations

import argparse
import ipaddress
import os
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...hub_cards.checkpoints import require_checkpoint
from ...training.run_options import require_device
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
            ImportError: the extra 'serve' is not installed.
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
        self.limits()
        self.api_key()
        self.tls()
        require_device(self.device, DEVICES)

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


def add_serving_options(command: argparse.ArgumentParser) -> None:
    """What can be said on the command line."""
    command.epilog = "An API key comes from --api-key-file or the environment's PRIORVLA_API_KEY."
    command.add_argument("checkpoint", help="folder or Hub id of a policy")
    command.add_argument("--embodiment", metavar="NAME", help="the robot to drive, where the checkpoint knows several")
    command.add_argument(
        "--backbone", default="auto", help="folder to take the backbone from; auto: what the config names"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the policy runs")
    command.add_argument("--execute-steps", type=int, help="of a chunk, as told to clients; default: half of it")
    command.add_argument("--seed", type=int, default=0, help="of a client's noise, unless it asks for another")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one there is")
    command.add_argument("--port", type=int, default=8000, help="0: any free one")
    command.add_argument("--api-key-file", type=Path, help="file with the key that clients must send")
    command.add_argument("--tls-cert", type=Path, help="PEM file: the server's certificate, for wss://")
    command.add_argument("--tls-key", type=Path, help="PEM file: the certificate's key, if it is not in there")
    command.add_argument("--max-clients", type=int, default=32, help="connections at a time")
    command.add_argument("--max-batch", type=int, default=8, help="requests predicted together; 1: equal to the bit")
    command.add_argument("--batch-window-ms", type=float, default=0.0, help="an idle model waits so long for others")
    command.add_argument("--max-message-mb", type=float, default=16.0, help="of a request, 10^6 bytes")
    command.add_argument("--rate-limit", type=float, default=100.0, help="requests a second and client; more must wait")
    command.add_argument("--request-timeout", type=float, default=10.0, help="seconds until an answer must be there")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["API_KEY_VARIABLE", "DEVICES", "ServingOptions", "add_serving_options"]
