"""`priorvla serve`: a checkpoint in, a port that answers."""

from __future__ import annotations

import asyncio
import signal
import sys

from ..policy import PriorVLAPolicy
from .policy_server import PolicyServer
from .serving_options import ServingOptions


def serve_checkpoint(options: ServingOptions) -> None:
    """Serves until SIGTERM or Ctrl-C, which let running predictions finish; a second one ends the process at once.

    Raises ValueError, FileNotFoundError or ImportError before anything is loaded, see `ServingOptions.check`, and
    OSError when the port is taken.
    """
    options.check()
    if warning := options.warning():
        print(warning, file=sys.stderr)
    policy = PriorVLAPolicy.from_pretrained(
        options.checkpoint,
        backbone=options.backbone,
        device=options.device,
        embodiment=options.embodiment,
        execute_steps=options.execute_steps,
        limits=options.action_limits,
        compile=options.compile,
    )
    server = PolicyServer(
        policy, name=options.checkpoint, limits=options.limits(), api_key=options.api_key(), seed=options.seed
    )
    asyncio.run(_serve_until_stopped(server, options, policy.embodiment.name))
    print("The server has stopped.")


async def _serve_until_stopped(server: PolicyServer, options: ServingOptions, embodiment: str) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    tls = options.tls()

    def end() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # Python's own Ctrl-C would wait for the model's thread

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)

    def started(port: int) -> None:
        secure = "s" if tls else ""
        print(
            f"Serving {embodiment} at ws{secure}://{options.host}:{port} (health and numbers: "
            f"http{secure}://{options.host}:{port}/healthz and /metrics). Ctrl-C stops.",
            flush=True,
        )

    print("Compiling and warming up: minutes." if options.compile else "Warming up.", flush=True)
    await server.run(stop, host=options.host, port=options.port, tls=tls, started=started)


__all__ = ["serve_checkpoint"]
