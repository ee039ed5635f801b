"""The command-line options of `priorvla serve`, for its help: this module imports nothing."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    command.add_argument(
        "--action-limits", type=Path, metavar="FILE", help="YAML or JSON, told to clients, who keep their robot in them"
    )
    command.add_argument("--compile", action="store_true", help="the policy, before the port opens: minutes")
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
    command.add_argument("--rate-limit", type=float, default=100.0, help="requests a second and connection; more wait")
    command.add_argument("--request-timeout", type=float, default=10.0, help="seconds until an answer must be there")


__all__ = ["add_serving_options"]
