"""What torch.compile gives a policy: a chunk with the expert as it is, and compiled; and how long compiling takes.

    python benchmarks/compiled_chunks.py --output-dir runs/compiled_chunks

One observation (B = 1, one camera of 112 px, instruction encoded before, as policies keep it), ten Euler steps, hosts
and sizes as in chunk_latency.py: the packaged dual encoder and eight expert layers with random weights, on which time
does not depend. Both arms run in one process, in turns, from the same noise; how far their chunks differ is in the
report. Figures are medians over repeats, ratios are of each repeat's two times, with the lowest and the highest of
them; processor time is in there beside the clock's, because others may use the machine. Where a compiled graph was
made before, torch takes it from its cache on the disk: `compile_s` of a first run is the one that counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chunk_latency import INSTRUCTION, largest, made_up_body, policy
from report_file import made_with, write_report
from rung2_speed import BACKBONE, over_rounds

from priorvla.configuration.configuration_priorvla import FUSIONS
from priorvla.configuration.recipe import load_recipe
from priorvla.deployment.compilation import compile_expert
from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

CLOCKS = {"ms": time.perf_counter, "processor_ms": time.process_time}


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds by each clock; on a GPU until it is done."""
    began = {name: clock() for name, clock in CLOCKS.items()}
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {name: 1e3 * (clock() - began[name]) for name, clock in CLOCKS.items()}


@torch.no_grad()
def measure(fusion: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One host."""
    backbone, body = load_backbone(None, folder), made_up_body()
    model = policy(fusion, backbone, body).to(options.device)
    horizon = load_recipe("action_prior_small")["model"]["expert"]["chunk_size"]
    processor = PriorVLAProcessor.for_backbone(folder, [body], chunk_size=horizon)
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    made = processor(embodiment="arm", state=np.zeros(7), images={"front": picture}, text=INSTRUCTION)
    inputs = dict(made.to(options.device))
    words = (inputs.pop("input_ids"), inputs.pop("attention_mask"))
    language = None if backbone.language_reads_vision else backbone.encode_language(None, *words)
    noise = model.draw_noise(inputs["embodiment_ids"], torch.Generator().manual_seed(0))

    def sample() -> torch.Tensor:
        return model.sample_actions(
            **inputs, language_features=language, num_inference_steps=options.steps, noise=noise
        )

    arms = {"eager": model.expert.denoise}
    expected = sample()
    compile_expert(model)
    arms["compiled"] = model.expert.denoise
    compiling = timed(sample)
    difference = largest(sample() - expected)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for _ in range(options.repeats):
        for name, denoise in arms.items():
            model.expert.denoise = denoise  # type: ignore[method-assign]
            times[name].append(timed(sample))
    result: dict[str, Any] = {
        name: {clock: round(statistics.median(one[clock] for one in own), 1) for clock in CLOCKS}
        for name, own in times.items()
    }
    ratios = {
        f"times_faster_{clock}": over_rounds([a[clock] / b[clock] for a, b in zip(*times.values(), strict=True)])
        for clock in CLOCKS
    }
    return {**result, **ratios, "compile_s": round(compiling["ms"] / 1e3, 1), "largest_difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/compiled_chunks"))
    parser.add_argument("--hosts", nargs="+", choices=FUSIONS, default=list(FUSIONS))
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: what torch takes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, hosts = packaged_backbone_folder(BACKBONE), {}
    for fusion in options.hosts:
        hosts[fusion] = row = measure(fusion, folder, options)
        print(f"{fusion}: {json.dumps(row)}", flush=True)
    result = {
        "kind": "compiled-chunks",
        "backbone": BACKBONE,
        "denoising_steps": options.steps,
        "batch": 1,
        "repeats": options.repeats,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "hosts": hosts,
    }
    print(made_with(write_report(options.output_dir, result, threads=options.threads)))


if __name__ == "__main__":
    main()
