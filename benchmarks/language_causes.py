"""Why does a policy of `language.py` listen, or not? What lies between the words and the actions, one after the other.

    python benchmarks/language_causes.py --table runs/language --output-dir runs/language_causes

Asked of one host, knob and seed whose trainings still lie in the table's folder:

    words      Does the encoding of an instruction say what is asked for? A linear map of its mean token, fitted to all
               that training can hear, tells colour, shape and place in combinations of colour and shape that training
               never makes, and in paraphrases.
    sight      Was rung 2 done? What the vision-action prior does in fresh scenes as it was trained in, and on `seen`.
    gradients  Do they reach the layers that read? Norms of the loss's gradient by kind of layer, gates apart, where
               rung 3 begins and where it ends, on the windows that it is trained on. Behind shut gates only these have
               one, by construction (those of action tokens are rows of the modulation, and count as weights).
    worth      How much does the loss grow when windows of fresh demonstrations are given the words of other scenes?
               Same noise, a 95 % bootstrap interval over groups of episodes: in scenes as in training, and in
               `many-instructions`. The other words may name what is not there: that they matter is not that the right
               thing is done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from language import HOSTS, KNOBS, TWICE, command, folder_name, suite_of
from language_trials import PICTURE, done_by
from report_file import made_with, write_report
from torch import Tensor

from priorvla.deployment.environments.tabletop_grammar import (
    CONTAINER_COLOURS,
    CONTAINERS,
    PARAPHRASES,
    SIDES,
    TEMPLATES,
    UNSEEN_OBJECTS,
    Container,
    Request,
    all_things,
    wording,
)
from priorvla.modeling_priorvla.image_places import taken_in
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.chunk_distances import bootstrap_mean
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.observation_features import as_features
from priorvla.training.observed_windows import observed_windows
from priorvla.training.runs import load_sources

BATCH = 64
EPISODES = 10  # in a group, of which the loss is one number
RIDGE = 1.0  # of the linear map, on features of variance 1
ASKED = ("one stage, longer", "two stages")  # whose words' worth is told


def encoded(model: PriorVLAModel, processor: PriorVLAProcessor, sentences: list[str]) -> Tensor:
    """The mean tokens (N, d) of sentences, as a policy takes them in."""
    body = processor.embodiments[0].name
    words = processor(embodiment=body, text=sentences)
    assert model.backbone is not None
    with torch.no_grad():
        heard = model.backbone.encode_language(None, words["input_ids"], words["attention_mask"])
    tokens = taken_in(heard.tap(0), model.config.normalize_features, torch.float32)
    return (tokens * heard.mask[..., None]).sum(1) / heard.mask.sum(1, keepdim=True)


def words(model: PriorVLAModel, processor: PriorVLAProcessor) -> dict[str, dict[str, float]]:
    """Suite -> how often a linear map tells colour, shape, place, and all three."""
    places: list[Container | str] = [Container(*own) for own in product(CONTAINER_COLOURS, CONTAINERS)]
    requests = [Request(thing, place) for thing in all_things() for place in (*places, *SIDES)]
    trained = [r for r in requests if r.thing.seen and r.place_seen]
    strange = [r for r in requests if (r.thing.colour, r.thing.shape) in UNSEEN_OBJECTS and r.place_seen]

    def said(
        asked: list[Request], templates: Mapping[str, tuple[str, ...]]
    ) -> tuple[Tensor, list[tuple[str, str, str]]]:
        pairs = [(wording(r, template), r) for r in asked for template in templates[r.kind]]
        told = [(r.thing.colour, r.thing.shape, str(r.place)) for _, r in pairs]
        return encoded(model, processor, [sentence for sentence, _ in pairs]), told

    features, told = said(trained, TEMPLATES)
    centre, spread = features.mean(0), features.std(0) + 1e-6
    classes = [sorted({parts[index] for parts in told}) for index in range(3)]
    wanted = [torch.tensor([own.index(parts[index]) for parts in told]) for index, own in enumerate(classes)]
    inputs = with_one((features - centre) / spread)
    gram = inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1])
    maps = [
        torch.linalg.solve(gram, inputs.T @ torch.nn.functional.one_hot(own, len(names)).float())
        for own, names in zip(wanted, classes, strict=True)
    ]
    result = {}
    for suite, (features, told) in {
        "unseen-object": said(strange, TEMPLATES),
        "paraphrase": said(trained, PARAPHRASES),
    }.items():
        right = []
        for index, (names, solved) in enumerate(zip(classes, maps, strict=True)):
            answers = (with_one((features - centre) / spread) @ solved).argmax(-1)
            right.append(answers == torch.tensor([names.index(parts[index]) for parts in told]))
        right.append(right[0] & right[1] & right[2])
        shares = [own.float().mean().item() for own in right]
        result[suite] = dict(zip(("colour", "shape", "place", "all"), shares, strict=True))
    return result


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def random_batches(windows: ObservationDataset, count: int, seed: int) -> Iterable[dict[str, Any]]:
    """Random windows, the same for everybody."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield windows.__getitems__(torch.randint(len(windows), (BATCH,), generator=random).tolist())


def loss_of(model: PriorVLAModel, batch: dict[str, Any], seed: int) -> Tensor:
    """The flow loss under noise of `seed`."""
    noise = torch.Generator().manual_seed(seed)
    loss = model(**as_features(batch, model.config.taps), generator=noise).loss
    assert loss is not None
    return loss


def gradients(model: PriorVLAModel, windows: ObservationDataset, count: int) -> dict[str, float]:
    """Norms of the mean gradient of `count` batches, by kind of layer; gates and other weights apart."""
    model.train()
    model.zero_grad()
    for number, batch in enumerate(random_batches(windows, count, seed=0)):
        (loss_of(model, batch, number) / count).backward()
    kinds = model.config.expert.expert_layers
    squares: dict[str, float] = {}
    for name, parameter in model.expert.named_parameters():
        if name.startswith("layers.") and parameter.grad is not None:
            reads = kinds[int(name.split(".")[1])] == "vision_language"
            kind = f"{'read' if reads else 'do not read'}: {'gates' if '_gate.' in name else 'weights'}"
            squares[kind] = squares.get(kind, 0.0) + parameter.grad.square().sum().item()
    model.zero_grad()
    return {kind: square**0.5 for kind, square in sorted(squares.items())}


def worth(model: PriorVLAModel, windows: ObservationDataset) -> dict[str, Any]:
    """The loss with an episode's own words, and by how much it grows with those of an episode far away.

    Every window once; the interval is over groups of episodes that follow each other, of which none is in two groups.
    """
    model.eval()
    trajectory, _ = windows.windows.frame_of(range(len(windows)))
    groups = [(trajectory // EPISODES == group).nonzero().squeeze(-1) for group in (trajectory // EPISODES).unique()]
    own, more = [], []
    with torch.no_grad():
        for number, group in enumerate(groups):
            batch = windows.__getitems__(group.tolist())
            own.append(loss_of(model, batch, number).item())
            half = len(group) // 2
            others = {key: batch[key].roll(half, 0) for key in ("language_hidden_states", "language_mask")}
            more.append(loss_of(model, {**batch, **others}, number).item() - own[-1])
    grown = bootstrap_mean(more, [str(number) for number in range(len(groups))], draws=2000)
    return {"loss": sum(own) / len(own), "grows_by": grown.value, "interval": list(grown.interval)}


def windows_of(
    model: PriorVLAModel, processor: PriorVLAProcessor, data: Path, cache: Path, stride: int
) -> ObservationDataset:
    """What a model of this shape is shown of the demonstrations in `data`."""
    sources, _ = load_sources([str(data)], frames=True)
    windows = observed_windows(model, processor, sources, cache, max_cache_gb=10, stride=stride)
    assert isinstance(windows, ObservationDataset)  # of a frozen encoder
    return windows


def loaded(folder: Path) -> tuple[PriorVLAModel, PriorVLAProcessor]:
    return PriorVLAModel.from_pretrained(folder), PriorVLAProcessor.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("runs/language"), help="the folder of language.py")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/language_causes"))
    parser.add_argument("--host", choices=HOSTS, default="cross")
    parser.add_argument("--knob", choices=KNOBS, default="one")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=100, help="fresh demonstrations of each kind")
    parser.add_argument("--batches", type=int, default=32, help=f"for gradients, of {BATCH} windows")
    options = parser.parse_args()
    shared = options.table / f"{options.knob}-seed-{options.seed}"
    folder = shared / options.host
    for needed in (shared / "demonstrations", folder / "sight", *(folder / folder_name(own) for own in ASKED)):
        if not needed.is_dir():
            raise SystemExit(f"{needed} is not there: run benchmarks/language.py on this machine first")
    settings = json.loads((options.table / "settings.json").read_text(encoding="utf-8"))
    stride, trials = settings["frame_stride"], settings["trials"]

    result: dict[str, Any] = {}
    final, processor = loaded(folder / "two-stages")
    result["words"] = words(final, processor)
    for suite, shares in result["words"].items():
        print(f"words, {suite}: " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))

    trained = suite_of(options.knob)
    result["sight"] = {
        suite: done_by(folder / "sight", [suite], count, options.seed)[suite]
        for suite, count in ((trained, TWICE * trials), ("seen", trials))  # as language.py counts them, for `blind`
    }
    for suite, outcomes in result["sight"].items():
        kinds = ", ".join(f"{kind} {outcomes.count(kind)}" for kind in ("asked", "implied", "another", "nothing"))
        print(f"sight, {suite}: {kinds} of {len(outcomes)}")

    torch.manual_seed(options.seed)
    begun = PriorVLAModel.from_vision_action_prior(folder / "sight")
    begun.attach_backbone(final.backbone)
    shown = windows_of(begun, processor, shared / "demonstrations", shared / "features", stride)
    result["gradients"] = {}
    for name, model in {"as rung 3 begins": begun, "at its end": final}.items():
        result["gradients"][name] = gradients(model, shown, options.batches)
        norms = (f"{kind} {norm:.4f}" for kind, norm in result["gradients"][name].items())
        print(f"gradients {name}: " + ", ".join(norms))

    result["worth"] = {}
    for suite in dict.fromkeys((trained, suite_of("many"))):
        data = options.output_dir / f"{suite}-{options.seed}-{options.episodes}"
        if not data.is_dir():
            command("collect", "--env", "tabletop", "--tasks", suite, "--episodes", options.episodes,
                    "--seed", 10_000 + options.seed, "--output-dir", data, "--image-size", PICTURE,
                    "--image-every", stride)  # fmt: skip
        for training in ASKED:
            model, processor = loaded(folder / folder_name(training))
            fresh = windows_of(model, processor, data, options.output_dir / "features", stride)
            told = worth(model, fresh)
            result["worth"].setdefault(suite, {})[training] = told
            low, high = told["interval"]
            grown = f"{told['grows_by']:+.4f} ({low:+.4f} to {high:+.4f})"
            print(f"worth, {suite}, {training}: loss {told['loss']:.4f}, with others' words {grown}", flush=True)
    asked = {name: getattr(options, name) for name in ("host", "knob", "seed", "episodes", "batches")}
    print(made_with(write_report(options.output_dir, {"kind": "language_causes", **asked, **result})))


if __name__ == "__main__":
    main()
