"""A broker drives the robot that its server describes, within the limits that it tells, and no other."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if not all(map(find_spec, ("msgpack", "prometheus_client", "websockets"))):
    pytest.skip("needs the extra 'serve'", allow_module_level=True)
from websockets.sync.server import ServerConnection

from priorvla.deployment.client import ChunkBroker, PolicyClient, PolicyServerError
from priorvla.deployment.serving.numpy_messages import encode

OURS = {
    "protocol_version": 1,
    "embodiment": "left_arm",
    "action_names": ["j1", "j2"],
    "state_names": ["j1", "j2"],
    "control_rate": 10.0,
    "action_kinds": ["absolute", "absolute"],
    "gripper_dims": [],
    "chunk_size": 4,
    "execute_steps": 2,
    "history_size": 0,
    "action_limits": {"low": [-0.1, -0.1], "max_rate": [1.0, None]},
}
AT_REST = {"state": np.zeros(2)}


def four_steps(connection: ServerConnection, _: Any) -> None:
    connection.send(encode({"actions": np.full((4, 2), 0.05)}))


@pytest.mark.parametrize(
    "change",
    [
        {"embodiment": "right_arm"},
        {"action_names": ["j2", "j1"]},
        {"action_kinds": ["delta", "absolute"]},
        {"control_rate": 20.0},
        {"chunk_size": 8},
        {"action_limits": {"low": [-0.01, -0.01]}},
        {"action_limits": {}},  # started again without --action-limits
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_robot_or_other_limits_behind_the_same_address_move_nothing(change, other_server):
    (key,) = change
    with other_server(four_steps, metadata=OURS) as (port, _):
        client = PolicyClient(port=port)
        broker = ChunkBroker(client)
        actions = [broker.select_action(AT_REST) for _ in range(2)]
    with other_server(four_steps, port, {**OURS, **change}), client:
        for _ in range(2):
            with pytest.raises(PolicyServerError, match=f"the server has changed: its {key} was .* new ChunkBroker"):
                broker.select_action(AT_REST)
        np.testing.assert_array_equal(broker.hold(), actions[-1])
        broker.reset()
        with pytest.raises(PolicyServerError, match="the server has changed"):
            broker.select_action(AT_REST)
    with other_server(four_steps, port, OURS), client:
        np.testing.assert_allclose(broker.select_action(AT_REST), 0.05)


def test_how_much_of_a_chunk_is_executed_is_asked_of_the_server_that_there_is(other_server):
    with other_server(four_steps, metadata=OURS) as (port, asked):
        client = PolicyClient(port=port)
        broker = ChunkBroker(client)
        for _ in range(4):
            broker.select_action(AT_REST)
        assert len(asked) == 2
    with other_server(four_steps, port, {**OURS, "execute_steps": 1}) as (_, asked), client:
        broker.reset()
        for _ in range(4):
            broker.select_action(AT_REST)
        assert len(asked) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_limits": {"max_force": [1, 1]}}, "action_limits is 'max_force', expected limits that this client"),
        ({"action_limits": {"low": [-1, -1, -1]}}, "action_limits: low has 3 numbers, 'left_arm' has 2"),
        ({"action_limits": {"low": "much"}}, "action_limits: low 'much' is no finite number"),
        ({"action_limits": [1]}, r"action_limits is \[1\], expected a map"),
        ({"execute_steps": 0}, "execute_steps is 0, expected a whole number from 1"),
        ({"execute_steps": 5}, "execute_steps is 5, expected at most its chunk_size of 4"),
        ({"chunk_size": "4"}, "chunk_size is '4', expected a whole number"),
        ({"history_size": None}, "history_size is None, expected a whole number from 0"),
        ({"protocol_version": 2}, "protocol_version 2, this client 1: install the same"),
        ({"action_names": "j1"}, "action_names is 'j1', expected a list of words"),
        ({"control_rate": "fast"}, "control_rate is 'fast', expected a number"),
        ({"gripper_dims": [7]}, "describes no robot: embodiment 'left_arm': gripper dim 7 is outside"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_server_that_says_what_makes_no_sense_is_refused_by_the_key(change, message, other_server):
    with (
        other_server(four_steps, metadata={**OURS, **change}) as (port, _),
        pytest.raises(PolicyServerError, match=message),
    ):
        PolicyClient(port=port)


def test_an_observation_without_the_state_that_limits_count_from_moves_nothing(other_server):
    with other_server(four_steps, metadata=OURS) as (port, asked), PolicyClient(port=port) as client:
        broker = ChunkBroker(client)
        for seen, message in (({}, "no state was given"), ({"state": np.zeros(3)}, r"has shape \(3,\), 'left_arm'")):
            with pytest.raises(ValueError, match=message):
                broker.select_action(seen)
        np.testing.assert_allclose(broker.select_action(AT_REST), 0.05)
        assert len(asked) == 1


def test_actions_that_count_from_a_chunks_start_are_not_handed_out_one_by_one(other_server):
    relative = {**OURS, "action_kinds": ["relative"] * 2, "action_limits": {}}
    with (
        other_server(four_steps, metadata=relative) as (port, _),
        PolicyClient(port=port) as client,
        pytest.raises(ValueError, match="'left_arm' were recorded relative"),
    ):
        ChunkBroker(client)


def test_after_a_hold_the_rest_of_the_chunk_is_not_executed(other_server):
    with (
        other_server(four_steps, metadata={**OURS, "execute_steps": 4}) as (port, asked),
        PolicyClient(port=port) as client,
    ):
        broker = ChunkBroker(client)
        broker.select_action(AT_REST)
        broker.hold()
        broker.select_action(AT_REST)
        assert len(asked) == 2


def test_a_broker_executes_no_chunk_of_another_width(other_server):
    with (
        other_server(lambda connection, _: connection.send(encode({"actions": np.zeros((4, 3))})), metadata=OURS) as (
            port,
            _,
        ),
        PolicyClient(port=port) as client,
        pytest.raises(PolicyServerError, match=r"no chunk \(H, 2\)"),
    ):
        ChunkBroker(client).select_action(AT_REST)
