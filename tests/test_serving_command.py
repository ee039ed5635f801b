"""`priorvla serve`: arguments that are checked first, a port that is told, and signals that end it cleanly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from argparse import _SubParsersAction
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not all(map(find_spec, ("msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs the extra 'serve'", allow_module_level=True)
from websockets.sync.client import connect

from priorvla.cli import build_parser, main
from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.client import PolicyClient, PolicyServerError
from priorvla.deployment.serving.numpy_messages import encode
from priorvla.deployment.serving.serving_options import API_KEY_VARIABLE, ServingOptions


@pytest.fixture(scope="module")
def checkpoint(save_policy, tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    bodies = [
        Embodiment(name, ["x", "y"], ["a"], 10.0, cameras=["top"]).with_statistics(
            random.normal(size=(50, 1)), random.normal(size=(50, 2))
        )
        for name in ("left", "right")
    ]
    return save_policy(tmp_path_factory.mktemp("policies") / "two-arms", bodies)


@pytest.fixture
def serve(checkpoint, tiny_backbone, tmp_path):
    """`(*options)`: the command in a process of its own; gives it and its port."""

    @contextmanager
    def start(*options: object, **environment: str) -> Iterator[tuple[subprocess.Popen, int]]:
        arguments = ["serve", checkpoint, "--backbone", tiny_backbone, "--port", 0, "--embodiment", "right", *options]
        command = [sys.executable, "-m", "priorvla.cli", *map(str, arguments)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=tmp_path, env={**os_environment(), **environment}, **pipes) as process:
            try:
                lines = []
                while not lines or "Serving" not in lines[-1]:
                    lines.append(process.stdout.readline())
                    assert lines[-1], process.stderr.read()
                process.first_lines = "".join(lines)
                yield process, int(re.search(r"ws://[\d.]+:(\d+)", lines[-1]).group(1))
            finally:
                process.kill()

    return start


def os_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}


def seen() -> dict[str, Any]:
    return {"observation/image": np.zeros((28, 28, 3), np.uint8), "observation/state": [0.5], "prompt": "open"}


def ended_by(process: subprocess.Popen, number: signal.Signals) -> None:
    """The signal ends the command as if its work were done."""
    process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.endswith("The server has stopped.\n") and "Traceback" not in errors


def test_the_command_serves_the_embodiment_that_was_named(serve, tmp_path):
    limits = tmp_path / "limits.yaml"
    limits.write_text("left: {high: 1}\nright: {high: [2, null]}\n")
    with serve("--execute-steps", 5, "--seed", 4, "--action-limits", limits) as (process, port):
        assert f"Serving right at ws://127.0.0.1:{port}" in process.first_lines
        with PolicyClient(port=port) as client:
            assert client.metadata["model"] == "two-arms"  # of an absolute path the name alone
            assert (client.metadata["execute_steps"], client.metadata["seed"]) == (5, 4)
            assert client.metadata["action_limits"] == {"high": [2, None]}
            assert client.infer(seen())["actions"].shape == (6, 2)
            ended_by(process, signal.SIGTERM)


def test_a_second_ctrl_c_does_not_wait_for_a_model_that_hangs(checkpoint, tiny_backbone, tmp_path):
    code = (
        "import sys, threading; from priorvla.cli import main; "
        "from priorvla.deployment.serving.session_model import SessionModel; "
        "SessionModel.predict = lambda *_: print('It hangs.', flush=True) or threading.Event().wait(60); "
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--backbone", tiny_backbone, "--port", 0, "--embodiment", "right", "--request-timeout", 600]
    command = [sys.executable, "-c", code, "serve", *map(str, [checkpoint, *options])]
    with subprocess.Popen(command, cwd=tmp_path, env=os_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            while "Serving" not in (line := process.stdout.readline()):
                assert line
            port = int(re.search(r"ws://[\d.]+:(\d+)", line).group(1))
            with connect(f"ws://127.0.0.1:{port}", proxy=None, close_timeout=0) as connection:
                connection.send(encode(seen()))
                assert process.stdout.readline() == "It hangs.\n"
                process.send_signal(signal.SIGINT)
                while accepts(port):
                    time.sleep(0.01)
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == -signal.SIGINT
        finally:
            process.kill()


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_key_of_the_environment_is_asked_for(serve):
    with serve(**{API_KEY_VARIABLE: "of-the-environment"}) as (process, port):
        with pytest.raises(PolicyServerError, match="401"):
            PolicyClient(port=port)
        with PolicyClient(port=port, api_key="of-the-environment") as client:
            assert client.metadata["embodiment"] == "right"
        ended_by(process, signal.SIGINT)


def test_the_commands_options_are_those_of_the_class_with_its_defaults():
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, _SubParsersAction))
    known = {action.dest: action.default for action in commands.choices["serve"]._actions}
    own = {field.name: field.default for field in fields(ServingOptions) if field.name != "checkpoint"}
    assert own.items() <= known.items() and set(known) - set(own) == {"help", "config", "checkpoint"}


def test_no_option_holds_the_key_itself(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert API_KEY_VARIABLE in capsys.readouterr().out
    assert main(["serve", "me/policy", "--api-key", "secret"]) == 2  # short for --api-key-file
    assert "--api-key-file secret does not exist: name a file" in capsys.readouterr().err


def test_wrong_arguments_are_found_without_loading_any_deep_learning(tmp_path):
    code = (
        "import sys; from priorvla.cli import main; status = main(sys.argv[1:]); "
        "print(status, sorted({'torch', 'transformers', 'websockets'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code, "serve", "/no/where"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []" and "/no/where does not exist" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 65536}, "--port 65536"),
        ({"execute_steps": 0}, "--execute-steps 0 must be at least 1"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"max_batch": 0}, "max_batch=0 must be at least 1"),
        ({"device": "abacus"}, "--device abacus is unknown"),
        ({"tls_key": Path("key.pem")}, "give --tls-cert too"),
        ({"tls_cert": Path("missing.pem")}, "--tls-cert missing.pem does not exist"),
        ({"tls_cert": Path("empty")}, "--tls-cert empty"),
        ({"api_key_file": Path("empty")}, "--api-key-file empty holds no key"),
        ({"api_key_file": Path("two")}, "--api-key-file two holds no key"),
        ({"action_limits": Path("missing")}, "missing does not exist: name a YAML or JSON file"),
        ({"action_limits": Path("two")}, "two: limits are a mapping"),
        ({"api_key_file": Path("missing")}, "--api-key-file missing does not exist"),
    ],
)
def test_options_are_checked_and_named(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("two").write_text("a key\nand another\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ServingOptions("me/policy", **changes).check()


def test_the_file_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "of-the-environment")
    assert ServingOptions("me/policy").api_key() == "of-the-environment"
    file = tmp_path / "key"
    file.write_text("of-the-file\n")
    assert ServingOptions("me/policy", api_key_file=file).api_key() == "of-the-file"
    monkeypatch.setenv(API_KEY_VARIABLE, " ")
    with pytest.raises(ValueError, match=f"{API_KEY_VARIABLE} holds no key"):
        ServingOptions("me/policy").api_key()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "robot.local", ""])
def test_an_open_door_is_warned_of(host, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert "whoever reaches" in ServingOptions("me/policy", host=host).warning()
    monkeypatch.setenv(API_KEY_VARIABLE, "key")
    assert ServingOptions("me/policy", host=host).warning() is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_a_door_to_this_machine_alone_is_not(host, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert ServingOptions("me/policy", host=host).warning() is None
