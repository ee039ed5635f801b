"""What the policy server adds to the model, whether many clients get their turn, and what it survives.

    python benchmarks/serving.py --output-dir runs/serving
    python benchmarks/serving.py --faults

`priorvla serve` runs in a process of its own, with a tiny policy of random weights: what is measured is the way of an
observation to the model and of the actions back, on loopback, not the model. Observations have two pictures of 224 x
224 (302 kB a request).

* Overhead: one client asks again and again. Round trip minus the model's own time (`infer_ms` in the reply). The
  control, in turn with it: a server of the package websockets alone, which answers the same frame unread.
* Fairness: eight clients ask without a pause, with batches of one and of eight. Replies by client, and round trips.
* `--faults` instead: 10,000 frames that are no requests (cut off, random, with bytes changed, with impossible shapes,
  types and depths), each on a connection of its own, and 1,000 connections that are torn down at any moment, half of
  them without a goodbye. Meanwhile three clients repeat an episode each, whose actions must stay those that they had
  before to the bit (batches of one), and the server must be the same process at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report_file import write_report
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    Dinov2Config,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_and_wait

from priorvla.configuration.backbone_reference import fields_for_backbone
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.client import PolicyClient
from priorvla.deployment.serving.numpy_messages import decode, encode
from priorvla.modeling_priorvla.backbone import describe_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.trajectory_dataset import expert_dims

TARGET_MS = 2.0  # of the overhead's median
CLIENTS = 8
WITNESSES, EPISODE = 3, 4  # clients who repeat an episode of so many steps while others misbehave
ATTACKERS = 6  # bad connections at a time
TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def save_tiny_policy(folder: Path) -> tuple[Path, Path]:
    """A policy with two cameras and random weights, and its backbone: their folders."""
    checkpoint, backbone = folder / "policy", folder / "backbone"
    words = [*TOKENS.values(), "open", "the", "drawer"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    small = {"num_hidden_layers": 1, "num_attention_heads": 2}
    vision = Dinov2Config(hidden_size=16, image_size=28, patch_size=14, **small)
    text = BertConfig(hidden_size=16, intermediate_size=32, vocab_size=len(words), **small)
    torch.manual_seed(0)
    dual = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=8)
    VisionTextDualEncoderModel(config=dual).save_pretrained(backbone)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS).save_pretrained(backbone)
    BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(backbone)

    names, walks = [f"joint_{index}" for index in range(7)], np.random.default_rng(0).normal(size=(2, 50, 7))
    body = Embodiment("arm", names, names, 10.0, cameras=["front", "wrist"]).with_statistics(*walks)
    reference = describe_backbone(backbone, source="hub", name="tiny")
    attention = {"num_attention_heads": 2, "head_dim": 8}
    sizes = {"hidden_size": 16, "intermediate_size": 32}
    expert = {"num_key_value_heads": 2, "latent_dim": 8, "expert_layers": ["motion"], **attention, **sizes}
    model = PriorVLAModel(
        PriorVLAConfig(
            expert={**expert, **expert_dims([body])},
            encoder={"num_hidden_layers": 1, **attention, **sizes},
            fusion_transformer={"num_hidden_layers": 1, **sizes},
            num_cameras=2,
            num_inference_steps=2,
            **fields_for_backbone(reference),
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # so that everything has an effect
    model.save_pretrained(checkpoint)
    PriorVLAProcessor.for_backbone(backbone, [body], chunk_size=16).save_pretrained(checkpoint)
    return checkpoint, backbone


@contextmanager
def serving(folders: tuple[Path, Path], **options: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`priorvla serve` in a process of its own, and its port."""
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "priorvla.cli", "serve", str(folders[0]), "--backbone", str(folders[1])]
    command += ["--port", "0", "--rate-limit", "1e9", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = next(found for line in process.stdout if (found := re.search(r"ws://[\d.]+:(\d+)", line)))
            yield process, int(port.group(1))
        finally:
            process.terminate()
            process.communicate()


def observation(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    return {
        "observation/image": pictures[0],
        "observation/wrist_image": pictures[1],
        "observation/state": random.normal(size=7),
        "prompt": "open the drawer",
    }


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(milliseconds, share)), 2) for share in (50, 95, 99)}


async def answer_unread(ports: Any) -> None:
    """The control: every frame is answered with as many bytes as a chunk's reply, until the process is ended."""

    async def answer(connection: ServerConnection) -> None:
        async for _ in connection:
            await connection.send(bytes(700))

    async with serve(answer, "127.0.0.1", 0, compression=None, max_size=2**24) as server:
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()


@contextmanager
def bare_server() -> Iterator[int]:
    """`answer_unread` in a process of its own, and its port."""
    spawning = multiprocessing.get_context("spawn")
    ports = spawning.Queue()
    process = spawning.Process(target=run_bare_server, args=(ports,), daemon=True)
    process.start()
    try:
        yield ports.get(timeout=60)
    finally:
        process.terminate()
        process.join()


def run_bare_server(ports: Any) -> None:
    asyncio.run(answer_unread(ports))


def measure_overhead(port: int, requests: int) -> dict[str, Any]:
    """Milliseconds of a round trip, of the model in it, of everything else, and of the control's round trip."""
    seen, total, model, control = observation(0), [], [], []
    frame = encode(seen)
    with (
        PolicyClient(port=port) as client,
        bare_server() as bare_port,
        connect_and_wait(f"ws://127.0.0.1:{bare_port}", compression=None, proxy=None) as bare,
    ):
        for request in range(requests + 20):
            began = time.perf_counter()
            reply = client.infer(seen)
            answered = time.perf_counter()
            bare.send(frame)
            bare.recv()
            if request >= 20:  # the first warm up
                total.append(1e3 * (answered - began))
                control.append(1e3 * (time.perf_counter() - answered))
                model.append(reply["server_timing"]["infer_ms"])
    rest = [a - b for a, b in zip(total, model, strict=True)]
    return {
        "requests": requests,
        "kilobytes_a_request": round(len(frame) / 1e3),
        "round_trip_ms": percentiles(total),
        "model_ms": percentiles(model),
        "overhead_ms": percentiles(rest),
        "bare_round_trip_ms": percentiles(control),
        "median_under_2_ms": percentiles(rest)["p50"] < TARGET_MS,
    }


def measure_fairness(port: int, seconds: float) -> dict[str, Any]:
    """Replies of each of eight clients who never pause, and their round trips."""
    trips: list[list[float]] = [[] for _ in range(CLIENTS)]
    together = threading.Barrier(CLIENTS)

    def live(client: int) -> None:
        seen = observation(client)
        with PolicyClient(port=port) as connection:
            connection.infer(seen)
            together.wait()
            ends = time.perf_counter() + seconds
            while (began := time.perf_counter()) < ends:
                connection.infer(seen)
                trips[client].append(1e3 * (time.perf_counter() - began))

    threads = [threading.Thread(target=live, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replies = [len(own) for own in trips]
    return {
        "clients": CLIENTS,
        "replies_by_client": replies,
        "least_over_most": round(min(replies) / max(replies), 3),
        "replies_a_second": round(sum(replies) / seconds, 1),
        "round_trip_ms": percentiles([trip for own in trips for trip in own]),
        "slowest_client_p50_ms": round(max(float(np.median(own)) for own in trips), 2),
    }


def malformed(random: np.random.Generator) -> bytes:
    """A frame that is no request, or by chance is one again."""
    pictures = dict.fromkeys(("observation/image", "observation/wrist_image"), np.zeros((8, 8, 3), np.uint8))
    small = {**pictures, "observation/state": np.zeros(7), "prompt": "open the drawer"}
    good = encode(small)
    array = b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x00\xc4\x05dtype\xa3%b\xc4\x05shape%b"
    size = b"\xcf" + struct.pack(">Q", int(random.integers(2**31, 2**63)))
    match random.integers(7):
        case 0:
            return good[: random.integers(len(good))]
        case 1:
            return random.bytes(int(random.integers(2000)))
        case 2:
            changed = bytearray(good)
            for position in random.integers(0, len(good), 3):
                changed[position] = random.integers(256)
            return bytes(changed)
        case 3:
            return array % (b"|u1", b"\x92" + size + size)
        case 4:
            return array % ((b"|O8", b"|V8", b"<c8", b"<f3")[random.integers(4)], b"\x91\x00")
        case 5:
            return (b"\x91", b"\x81\xa1a")[random.integers(2)] * int(random.integers(1, 20_000))
        case _:
            return encode({**small, [*small][random.integers(4)]: (None, True, 7, [[]])[random.integers(4)]})


async def send_malformed(url: str, frame: bytes) -> str:
    """What came of it: refused (text, then 1011), served, or something else."""
    async with connect(url, compression=None, proxy=None) as connection:
        await connection.recv()
        await connection.send(frame)
        try:
            reply = await asyncio.wait_for(connection.recv(), 30)
            if isinstance(reply, bytes):
                return "served"
            await asyncio.wait_for(connection.recv(), 30)
            return "more after an error"
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else None
            return "refused" if code == 1011 and isinstance(reply, str) else f"closed with {code}"


async def vanish(port: int, random: np.random.Generator) -> str:
    """Opens a websocket by hand and tears it down in the middle of whatever comes first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    handshake = "\r\n".join([*request, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode()
    payload = encode(observation(int(random.integers(10))))
    frame = b"\x82\xff" + struct.pack(">Q", len(payload)) + b"\x00" * 4 + payload  # masked with zeros
    moment = int(random.integers(4))
    if moment == 0:
        writer.write(handshake[: random.integers(len(handshake))])
    else:
        writer.write(handshake)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame[: {1: 0, 2: int(random.integers(len(frame))), 3: len(frame)}[moment]])
        await writer.drain()
    if moment == 3:
        await asyncio.sleep(float(random.uniform(0, 0.01)))
    if random.integers(2):  # a reset instead of a goodbye
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    return ["in the handshake", "after it", "in a frame", "in a request"][moment]


async def episode(connection: ClientConnection, witness: int) -> list[bytes]:
    """The actions of an episode that begins with a seed of the witness's own, as bytes."""
    actions = []
    for step in range(EPISODE):
        start = {"reset": True, "seed": witness} if step == 0 else {}
        await connection.send(encode({**observation(100 * witness + step), **start}))
        reply = await asyncio.wait_for(connection.recv(), 60)
        assert isinstance(reply, bytes), reply
        actions.append(decode(reply)["actions"].tobytes())
    return actions


async def inflict_faults(process: subprocess.Popen[str], port: int, frames: int, disconnects: int) -> dict[str, Any]:
    """All faults, several at a time, beside clients whose actions must not change."""
    url, random = f"ws://127.0.0.1:{port}", np.random.default_rng(0)
    witnesses = [await connect(url, compression=None, proxy=None) for _ in range(WITNESSES)]
    for connection in witnesses:
        await connection.recv()
    wanted = [await episode(connection, witness) for witness, connection in enumerate(witnesses)]
    memory, leaks, episodes = resident_megabytes(port), 0, 0
    outcomes: Counter[str] = Counter()
    kinds = np.repeat([0, 1], [frames, disconnects])
    random.shuffle(kinds)
    faults, done = iter(kinds), asyncio.Event()

    async def attack() -> None:
        for kind in faults:
            try:
                if kind:
                    outcomes[f"vanished {await vanish(port, random)}"] += 1
                else:
                    outcomes[f"malformed: {await send_malformed(url, malformed(random))}"] += 1
            except (OSError, ConnectionClosed, TimeoutError, asyncio.IncompleteReadError) as error:
                outcomes[f"failed: {type(error).__name__}"] += 1
                if process.poll() is not None:
                    return

    async def watch(witness: int) -> None:
        nonlocal leaks, episodes
        while not done.is_set():
            leaks += await episode(witnesses[witness], witness) != wanted[witness]
            episodes += 1

    began = time.perf_counter()
    watching = [asyncio.create_task(watch(witness)) for witness in range(WITNESSES)]
    await asyncio.gather(*(attack() for _ in range(ATTACKERS)))
    done.set()
    await asyncio.gather(*watching)
    await asyncio.sleep(1)
    result = {
        "frames": frames,
        "disconnects": disconnects,
        "outcomes": dict(outcomes.most_common()),
        "crashes": int(process.poll() is not None),
        "episodes_compared": episodes,
        "cross_session_leaks": leaks,
        "clients_at_the_end": number(port, "priorvla_clients"),
        "server_megabytes": {"before": memory, "after": resident_megabytes(port)},
        "seconds": round(time.perf_counter() - began, 1),
    }
    for connection in witnesses:
        await connection.close()
    return result


def number(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def resident_megabytes(port: int) -> float:
    return round(number(port, "process_resident_memory_bytes") / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/serving"))
    parser.add_argument("--requests", type=int, default=500, help="of the overhead's client")
    parser.add_argument("--seconds", type=float, default=10.0, help="of eight clients, twice")
    parser.add_argument("--faults", action="store_true", help="the fault run, and nothing else")
    parser.add_argument("--frames", type=int, default=10_000, help="with --faults: malformed ones")
    parser.add_argument("--disconnects", type=int, default=1_000, help="with --faults")
    options = parser.parse_args()
    result: dict[str, Any] = {"kind": "serving-faults" if options.faults else "serving"}
    with tempfile.TemporaryDirectory() as scratch:
        folders = save_tiny_policy(Path(scratch))
        with serving(folders, max_batch=1) as (process, port):
            if options.faults:
                faults = asyncio.run(inflict_faults(process, port, options.frames, options.disconnects))
                result["faults"] = faults
            else:
                result["overhead"] = measure_overhead(port, options.requests)
                result["fairness"] = {"batches_of_1": measure_fairness(port, options.seconds)}
        if not options.faults:
            with serving(folders, max_batch=8) as (_, port):
                result["fairness"]["batches_of_8"] = measure_fairness(port, options.seconds)
    name = "faults.json" if options.faults else "report.json"
    report = write_report(options.output_dir, result, packages=("websockets", "msgpack"), name=name)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
