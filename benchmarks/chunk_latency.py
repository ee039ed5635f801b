"""How long a chunk of actions takes, pixels and words in: the prefix computed once a chunk, or at every step.

    python benchmarks/chunk_latency.py --output-dir runs/chunk_latency

One observation (B = 1, one camera), ten Euler steps, every host: `latent` as one stage, and `cross`, `joint` and
`gated` with the eight layers of a policy that went through three rungs, of the small recipe's width. Once as policies
act (`use_cache=True`), once with backbone, context and every layer's keys and values computed again for every step.
Both start from the same noise; how far their chunks differ is in the report, beside how often expert and vision encoder
were run, and how far another picture moves the chunk. Expert and host have random weights under which every path has an
effect; time does not depend on them.

Backbones: the packaged dual encoder (real weights, 112 px), and a SmolVLM of the shape of SmolVLM-256M with random
weights, because no real ones come with a package: 16 tokens of an image of 256 px, float32.

A repeat times both arms, one after the other; figures are medians over repeats, and ratios are of each repeat's two
times, with the lowest and the highest of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report_file import write_report
from rung2_speed import BACKBONE, backbone_fields, over_rounds, vision_action_prior
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration, set_seed
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from priorvla.configuration.configuration_priorvla import FUSIONS, PriorVLAConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.recipe import load_recipe
from priorvla.modeling_priorvla.backbone import Backbone, load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.trajectory_dataset import expert_dims

INSTRUCTION = "open the drawer"
ARMS = {"with_cache": True, "without": False}  # use_cache
EQUAL = 1e-6
WORDS = ["<|im_end|>", "<|endoftext|>", "<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>"]
WORDS += INSTRUCTION.split()


def save_smolvlm(folder: Path, layers: int = 30, image_size: int = 256) -> Path:
    """A SmolVLM with the widths of SmolVLM-256M and random weights, and a tokenizer of few words.

    layers: of its language model, of 30. image_size: pixels, a multiple of 64, each 64 of which are a token.
    """
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": image_size,
            "patch_size": 16,
        },
        text_config=LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49280,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=0,
        ),
        scale_factor=4,
        image_token_id=3,
        tie_word_embeddings=True,
    )
    set_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    special = {"pad_token": WORDS[0], "unk_token": WORDS[1], "bos_token": WORDS[2]}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=WORDS[3:6], **special
    ).save_pretrained(folder)
    SmolVLMImageProcessorPil(max_image_size={"longest_edge": image_size}).save_pretrained(folder)
    return folder


def made_up_body() -> Embodiment:
    names = [f"joint_{index}" for index in range(7)]
    walks = np.random.default_rng(0).normal(size=(2, 50, 7))
    return Embodiment("arm", names, names, control_rate=10.0, cameras=["front"]).with_statistics(*walks)


def policy(fusion: str, backbone: Backbone, body: Embodiment) -> PriorVLAModel:
    """A policy in which what is seen, heard and felt has an effect."""
    if fusion == "latent":
        expert = {**load_recipe("action_prior_small")["model"]["expert"], **expert_dims([body])}
        model = PriorVLAModel(PriorVLAConfig(expert=expert, **backbone_fields(backbone))).attach_backbone(backbone)
    else:
        model = PriorVLAModel.from_vision_action_prior(vision_action_prior(fusion, backbone, [body]))
    set_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # gates are zero at birth
    return model.eval()


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[nn.Module]]:
    """A list that has one entry a call of `module`."""
    calls: list[nn.Module] = []
    handle = module.register_forward_pre_hook(lambda called, _: calls.append(called))
    try:
        yield calls
    finally:
        handle.remove()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure_host(model: PriorVLAModel, inputs: dict[str, Any], steps: int, repeats: int) -> dict[str, Any]:
    """Of one host: both arms' times, how often what was run, and how far their chunks differ."""
    assert model.backbone is not None
    noise = model.draw_noise(inputs["embodiment_ids"], torch.Generator().manual_seed(0))
    seen = {key: inputs[key] for key in ("pixel_values", "pixel_attention_mask", "input_ids", "attention_mask")}

    def sample(use_cache: bool, **other: Any) -> torch.Tensor:
        return model.sample_actions(use_cache=use_cache, num_inference_steps=steps, noise=noise, **{**inputs, **other})

    result: dict[str, Any] = {"expert_layers": len(model.config.expert.expert_layers)}
    chunks = []
    for name, use_cache in ARMS.items():
        with calls_of(model.expert) as evaluations, calls_of(model.backbone.model.vision_model) as encodings:
            chunks.append(sample(use_cache))
        result[name] = {"expert_evaluations": len(evaluations), "image_encodings": len(encodings)}
    times = [[seconds(partial(sample, use_cache)) for use_cache in ARMS.values()] for _ in range(repeats)]
    for name, spent in zip(ARMS, zip(*times, strict=True), strict=True):
        result[name]["ms"] = round(1e3 * statistics.median(spent), 1)
    with torch.no_grad():
        encoding = [seconds(partial(model.encode_observation, **seen)) for _ in range(repeats)]
    difference = largest(chunks[0] - chunks[1])
    return {
        **result,
        "of_which_encoding_ms": round(1e3 * statistics.median(encoding), 1),
        "times_faster": over_rounds([without / cached for cached, without in times]),
        "largest_difference": difference,
        "equal_to_1e-6": difference <= EQUAL,
        "moved_by_another_picture": largest(sample(True, pixel_values=-inputs["pixel_values"]) - chunks[0]),
    }


def largest(difference: torch.Tensor) -> float:
    return float(f"{difference.abs().max():.1e}")


def measure_backbone(folder: Path, steps: int, repeats: int) -> dict[str, Any]:
    """All hosts with one backbone."""
    backbone, body = load_backbone(None, folder), made_up_body()
    horizon = load_recipe("action_prior_small")["model"]["expert"]["chunk_size"]
    processor = PriorVLAProcessor.for_backbone(folder, [body], chunk_size=horizon)
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    inputs = dict(processor(embodiment="arm", state=np.zeros(7), images={"front": picture}, text=INSTRUCTION))
    hosts = {}
    for fusion in FUSIONS:
        hosts[fusion] = measure_host(policy(fusion, backbone, body), inputs, steps, repeats)
        print(f"{folder.name}, {fusion}: {hosts[fusion]['times_faster']['median']} times faster", flush=True)
    return {
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "image_tokens": backbone.tokens_per_image,
        "repeats": repeats,
        "hosts": hosts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/chunk_latency"))
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--repeats", type=int, default=15, help="with the dual encoder")
    parser.add_argument("--vlm-repeats", type=int, default=3, help="with the SmolVLM; 0 leaves it out")
    parser.add_argument("--vlm-layers", type=int, default=30, help="of the SmolVLM's language model")
    parser.add_argument("--vlm-image-size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: what torch takes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbones = {BACKBONE: measure_backbone(packaged_backbone_folder(BACKBONE), options.steps, options.repeats)}
    if options.vlm_repeats:
        with tempfile.TemporaryDirectory() as scratch:
            folder = save_smolvlm(Path(scratch) / "smolvlm", options.vlm_layers, options.vlm_image_size)
            name = f"SmolVLM-256M's shape, {options.vlm_layers} layers, random weights, {options.vlm_image_size} px"
            backbones[name] = measure_backbone(folder, options.steps, options.vlm_repeats)
    result = {
        "kind": "chunk-latency",
        "denoising_steps": options.steps,
        "batch": 1,
        "backbones": backbones,
    }
    print(json.dumps(write_report(options.output_dir, result, threads=options.threads), indent=2))


if __name__ == "__main__":
    main()
