"""Which layer of a vision encoder knows where a thing is that it is asked for?

    python benchmarks/feature_depth.py --output-dir runs/feature_depth
    python benchmarks/feature_depth.py --backbone FOLDER --image-size 224 --layers 6 9 12

First frames of the tabletop, two coloured things in each. A small probe is given the frozen tokens of one layer, taken
in as policies take them (each brought to mean 0 and variance 1), with the code of its place in the image. It looks for
a thing by its colour and shape (one attention, whose query is learned for every colour and every shape) and tells where
on the table it lies. The same probe, steps and scenes for every layer; told is how it does in scenes that it has not
seen:

    right     its answer is nearer to the thing that was asked for than to the other one
    close     it is within 3 cm of it
    median    its distance
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from report_file import made_with, write_report
from torch import Tensor, nn

from priorvla.deployment.environments.tabletop_env import TabletopEnv, tabletop_embodiment
from priorvla.deployment.environments.tabletop_grammar import COLOURS, SHAPES
from priorvla.deployment.environments.tabletop_model import CAMERA
from priorvla.modeling_priorvla.backbone import load_backbone
from priorvla.modeling_priorvla.image_places import place_codes, taken_in
from priorvla.modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES, packaged_backbone_folder
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

CLOSE = 0.03  # m
WIDTH = 64  # of the probe
BATCH, LEARNING_RATE = 64, 3e-3


class Scenes(NamedTuple):
    """N scenes of two things."""

    colours: Tensor  # (N, 2) long
    shapes: Tensor  # (N, 2) long
    places: Tensor  # (N, 2, 2) in m
    features: Tensor  # (N, layers, P, d)


class Probe(nn.Module):
    """One attention over an image's tokens, then a small network from what it found to a place on the table."""

    def __init__(self, size: int, codes: Tensor) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(size, WIDTH), nn.Linear(size, WIDTH)
        self.colour, self.shape = nn.Embedding(len(COLOURS), WIDTH), nn.Embedding(len(SHAPES), WIDTH)
        self.read = nn.Sequential(nn.Linear(WIDTH + codes.shape[-1], 128), nn.SiLU(), nn.Linear(128, 2))
        self.codes = codes

    def forward(self, tokens: Tensor, colour: Tensor, shape: Tensor) -> Tensor:
        """tokens (B, P, d), colour and shape (B,) long -> (B, 2)."""
        query = self.colour(colour) + self.shape(shape)
        look = (torch.einsum("bpd,bd->bp", self.keys(tokens), query) / WIDTH**0.5).softmax(-1)
        found = torch.cat([self.values(tokens), self.codes.expand(len(tokens), -1, -1)], dim=-1)
        return self.read(torch.einsum("bp,bpd->bd", look, found))


def draw_scenes(
    count: int, folder: Path, layers: list[int], image_size: int, seed: int
) -> tuple[Scenes, tuple[int, int]]:
    """First frames, encoded by the backbone in `folder`; and the rows and columns of an image's tokens."""
    named = {"source": "hub", "name": folder.resolve().name, "image_size": [image_size, image_size]}
    backbone = load_backbone(named, folder)
    table, body = TabletopEnv("seen/put", image_size=image_size), tabletop_embodiment()
    processor = PriorVLAProcessor.for_backbone(folder, [body], chunk_size=1, image_size=backbone.image_size)
    features, colours, shapes, places = [], [], [], []
    for scene in range(count):
        observation, _ = table.reset(seed=1_000_000 * (seed + 1) + scene)
        assert table.episode is not None
        layout = table.episode.layout
        colours.append([COLOURS.index(thing.colour) for thing in layout.things])
        shapes.append([SHAPES.index(thing.shape) for thing in layout.things])
        places.append([[place.x, place.y] for place in layout.places[: len(layout.things)]])
        batch = processor(embodiment=body.name, images={CAMERA: np.asarray(observation["images"][CAMERA])})
        with torch.no_grad():
            seen = backbone.encode_vision(batch["pixel_values"], taps=tuple(layers))
        features.append(torch.stack([seen.tap(layer)[0] for layer in layers]).half())
    return Scenes(*map(torch.tensor, (colours, shapes, places)), torch.stack(features)), backbone.image_grid


def measure(scenes: Scenes, layer: int, held_out: int, codes: Tensor, options: argparse.Namespace) -> dict[str, float]:
    """A probe of the `layer`-th of the encoded layers, trained on all scenes but the last `held_out`."""
    torch.manual_seed(options.seed)
    tokens = taken_in(scenes.features[:, layer], normalize=True, dtype=torch.float32)
    training = len(tokens) - held_out
    centre, spread = scenes.places[:training].mean((0, 1)), scenes.places[:training].std((0, 1))
    probe = Probe(tokens.shape[-1], codes)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.max_steps)

    def answers(rows: Tensor, asked: Tensor) -> Tensor:
        """Where the probe believes the things `asked` (B,) of scenes `rows` (B,) to be, (B, 2) in m."""
        return centre + spread * probe(tokens[rows], scenes.colours[rows, asked], scenes.shapes[rows, asked])

    for _ in range(options.max_steps):
        rows, asked = torch.randint(training, (BATCH,)), torch.randint(2, (BATCH,))
        loss = ((answers(rows, asked) - scenes.places[rows, asked]) / spread).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    rows = torch.arange(training, len(tokens)).repeat(2)
    asked = torch.arange(2).repeat_interleave(held_out)
    with torch.no_grad():
        told = answers(rows, asked)
    missed, other = ((told - scenes.places[rows, thing]).norm(dim=-1) for thing in (asked, 1 - asked))
    return {
        "right": round((missed < other).float().mean().item(), 3),
        "close": round((missed < CLOSE).float().mean().item(), 3),
        "median_cm": round(100 * missed.median().item(), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/feature_depth"))
    parser.add_argument(
        "--backbone", type=Path, help="folder of a backbone that sees by itself; default: the packaged one"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 6, 8, 9, 10, 11, 12], help="0: embeddings")
    parser.add_argument("--scenes", type=int, default=2000, help="to learn from")
    parser.add_argument("--held-out", type=int, default=500, help="scenes to measure on")
    parser.add_argument("--max-steps", type=int, default=1500, help="of a probe, 64 requests each")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name, *_ = PACKAGED_BACKBONES
    folder, count = options.backbone or packaged_backbone_folder(name), options.scenes + options.held_out
    options.layers = sorted(set(options.layers))
    scenes, grid = draw_scenes(count, folder, options.layers, options.image_size, options.seed)
    codes = place_codes(*grid, WIDTH)
    print("| layer | right | within 3 cm | median |\n|--:|--:|--:|--:|")
    results = {}
    for index, layer in enumerate(options.layers):
        results[layer] = measure(scenes, index, options.held_out, codes, options)
        right, close, median = results[layer].values()
        print(f"| {layer} | {right:.0%} | {close:.0%} | {median:.1f} cm |", flush=True)
    settings = {name: getattr(options, name) for name in ("scenes", "held_out", "max_steps", "image_size", "seed")}
    told = {"kind": "feature_depth", "backbone": folder.name, **settings, "layers": results}
    print(made_with(write_report(options.output_dir, told)))


if __name__ == "__main__":
    main()
