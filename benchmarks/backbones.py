"""What a backbone costs: tokens of an image, bytes of a frame, time to see and to read; and what half its layers save.

    python benchmarks/backbones.py --output-dir runs/backbones

One observation (B = 1): one camera, and an instruction of 12 tokens padded to 32. Features are kept at eight taps,
evenly spaced, as for the eight layers of a `joint` policy that went through three rungs. Three kinds of rows:

* the packaged backbones, with their real weights, pictures of 112 px;
* SmolVLM in the shape of SmolVLM-256M with random weights, pictures of 256 px;
* every family of language models that see, the real classes of transformers with random weights, all with a vision
  tower (12 layers, 384 wide) and a language model (16 layers, 576 wide, float32) of one size, so that they differ in
  how they are built alone. Pictures of 224 px; SmolVLM, which cannot take that, 256.

Beside each generative one stands its control: the same weights, cut to half the language model's layers, with as many
taps, measured in the same rounds; whether the taps that both have are the same bits is in the report. A round times
`encode_vision` and `encode_language` of both, one after the other. Reported are medians over rounds, with the lowest
and the highest; ratios are of each round's two times.

Bytes: `features_bytes` are those of a frame in a feature cache (image tokens at all taps, and the words where they are
read after the image), `prefix_bytes` the keys and values of image and words that a chunk keeps while it is sampled,
`weights_bytes` those of the backbone.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from chunk_latency import save_smolvlm
from report_file import write_report
from rung2_speed import over_rounds
from transformers import (
    AutoModel,
    Dinov2Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    set_seed,
)

from priorvla.configuration.expert_layout import even_taps
from priorvla.modeling_priorvla.backbone import adapter_of, load_backbone
from priorvla.modeling_priorvla.backbone_features import Backbone, LanguageFeatures, VisionFeatures
from priorvla.modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES, packaged_backbone_folder

TAPS, TOKENS, WORDS = 8, 32, 12
PIXELS, SMOLVLM_PIXELS = 224, 256

VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
QWEN_VISION = {"hidden_size": 384, "intermediate_size": 1536, "depth": 12, "num_heads": 6, "out_hidden_size": 576}
TEXT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 16,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10]}


def family_configs() -> dict[str, PreTrainedConfig]:
    """Every family's config, with towers of the same size and the family's own patches."""
    siglip = SiglipVisionConfig(**VISION, image_size=PIXELS, patch_size=14, vision_use_head=False)
    pali = {"vision_config": siglip, "projection_dim": 576, "image_token_index": 1000}
    return {
        "smolvlm": SmolVLMConfig(
            vision_config={**VISION, "image_size": SMOLVLM_PIXELS, "patch_size": 16},
            text_config=LlamaConfig(**TEXT),
            scale_factor=4,
            image_token_id=1000,
        ),
        "paligemma": PaliGemmaConfig(text_config=GemmaConfig(**TEXT, head_dim=64), **pali),
        "paligemma 2": PaliGemmaConfig(text_config=Gemma2Config(**TEXT, head_dim=64), **pali),
        "gemma3": Gemma3Config(
            vision_config=siglip,
            text_config=Gemma3TextConfig(**TEXT, head_dim=64),
            mm_tokens_per_image=64,
            image_token_index=1000,
        ),
        "qwen2_5_vl": Qwen2_5_VLConfig(
            vision_config={**QWEN_VISION, "patch_size": 14},
            text_config={**TEXT, "rope_parameters": ROPE},
            image_token_id=1000,
        ),
        "qwen3_vl": Qwen3VLConfig(
            vision_config={**QWEN_VISION, "patch_size": 16, "deepstack_visual_indexes": [3, 6, 9]},
            text_config={**TEXT, "head_dim": 64, "rope_parameters": {**ROPE, "mrope_interleaved": True}},
            image_token_id=1000,
        ),
        "internvl": InternVLConfig(
            vision_config={**VISION, "image_size": PIXELS, "patch_size": 14},
            text_config=Qwen2Config(**TEXT),
            image_token_id=1000,
        ),
        "llava": LlavaConfig(
            vision_config=Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=PIXELS),
            text_config=LlamaConfig(**TEXT),
            image_token_index=1000,
        ),
    }


def random_backbone(name: str) -> Backbone:
    """Of a family, for pictures of one size."""
    set_seed(0)
    config, side = family_configs()[name], SMOLVLM_PIXELS if name == "smolvlm" else PIXELS
    return adapter_of(config.model_type, name)(AutoModel.from_config(config), (side, side))


def packaged_backbone(name: str) -> Backbone:
    return load_backbone(None, packaged_backbone_folder(name))


def random_smolvlm_256m(layers: int) -> Backbone:
    with tempfile.TemporaryDirectory() as scratch:
        return load_backbone(None, save_smolvlm(Path(scratch) / "smolvlm", layers, SMOLVLM_PIXELS))


def makers(vlm_layers: int) -> dict[str, Callable[[], Backbone]]:
    """Rows of the report, and what makes the backbone of each."""
    packaged = {name: partial(packaged_backbone, name) for name in PACKAGED_BACKBONES}
    whole = {f"SmolVLM-256M's shape, {vlm_layers} layers, random weights": partial(random_smolvlm_256m, vlm_layers)}
    small = {f"{name}, towers of one size, random weights": partial(random_backbone, name) for name in family_configs()}
    return {**packaged, **whole, **small}


class Arm:
    """A backbone, cut above `layers`, that sees one picture and reads one instruction, again and again."""

    def __init__(self, backbone: Backbone, layers: int) -> None:
        backbone.truncate(layers)
        self.backbone, self.taps = backbone, tuple(sorted(set(even_taps("joint", TAPS, layers))))
        draws = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(1, 1, 3, *backbone.image_size, generator=draws).to(backbone.dtype)
        self.tokens = torch.randint(5, 900, (1, TOKENS), generator=draws)
        self.mask = torch.arange(TOKENS)[None] < WORDS
        self.seconds: list[tuple[float, float]] = []  # to see, and to read, of every round
        self.encode()

    @torch.no_grad()
    def encode(self) -> tuple[VisionFeatures, LanguageFeatures]:
        began = time.perf_counter()
        vision = self.backbone.encode_vision(self.pixels, taps=self.taps)
        seen = time.perf_counter()
        language = self.backbone.encode_language(vision, self.tokens, self.mask, taps=self.taps)
        self.seconds.append((seen - began, time.perf_counter() - seen))
        return vision, language

    @property
    def together(self) -> list[float]:
        """Seconds of every round; the first, which warmed up, was none."""
        return [sum(both) for both in self.seconds[1:]]

    def report(self) -> dict[str, Any]:
        to_see, to_read = ([1e3 * spent for spent in column] for column in zip(*self.seconds[1:], strict=True))
        vision, language = self.encode()
        layers = [] if language.cache is None else language.cache.keys_values.layers
        return {
            "layers": self.backbone.last_layer,
            "taps": list(self.taps),
            "encode_vision_ms": over_rounds(to_see),
            "encode_language_ms": over_rounds(to_read),
            "features_bytes": vision.hidden_states.nbytes
            + self.backbone.language_reads_vision * language.hidden_states.nbytes,
            "prefix_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
            "weights_bytes": sum(parameter.nbytes for parameter in self.backbone.parameters()),
        }


def measure(backbone: Backbone, rounds: int) -> dict[str, Any]:
    """One row of the report."""
    arms = {"all_layers": Arm(backbone, backbone.num_layers)}
    if backbone.language_reads_vision:
        arms["half_the_layers"] = Arm(copy.deepcopy(backbone), backbone.num_layers // 2)
    for _ in range(rounds):
        for arm in arms.values():
            arm.encode()
    row = {
        "image_size": list(backbone.image_size),
        "tokens_per_image": backbone.tokens_per_image,
        "width": backbone.vision_hidden_size,
        "dtype": str(backbone.dtype).removeprefix("torch."),
    }
    if backbone.language_reads_vision:
        row["half_saves"] = saved(*arms.values())
    return row | {name: arm.report() for name, arm in arms.items()}


def saved(whole: Arm, half: Arm) -> dict[str, Any]:
    """How many times faster the half sees and reads, and whether it is the whole one up to where it was cut."""
    with torch.no_grad():
        shared = whole.backbone.encode_vision(whole.pixels, taps=half.taps)
        own = half.backbone.encode_vision(half.pixels, taps=half.taps)
    return {
        "times_faster": over_rounds([long / short for long, short in zip(whole.together, half.together, strict=True)]),
        "same_bits_up_to_the_cut": torch.equal(shared.hidden_states, own.hidden_states),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose names have this in them; default: all")
    parser.add_argument("--vlm-layers", type=int, default=30, help="of the language model of SmolVLM-256M's shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: what torch takes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {}
    for name, make in makers(options.vlm_layers).items():
        if options.only not in name:
            continue
        try:
            rows[name] = measure(make(), options.rounds)
        except ImportError as error:  # the packages that weights come in are not installed
            print(f"{name} is left out: {error}", flush=True)
            continue
        times = [rows[name]["all_layers"][f"encode_{what}_ms"]["median"] for what in ("vision", "language")]
        print(f"{name}: sees in {times[0]} ms, reads in {times[1]} ms", flush=True)
    result = {
        "kind": "backbones",
        "batch": 1,
        "cameras": 1,
        "instruction_tokens": TOKENS,
        "rounds": options.rounds,
        "backbones": rows,
    }
    print(json.dumps(write_report(options.output_dir, result, threads=options.threads), indent=2))


if __name__ == "__main__":
    main()
