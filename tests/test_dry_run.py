"""A dry run says what a training will cost, and what it says is what a real model of that shape takes."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from priorvla.cli import main
from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.published_backbones import list_published_backbones, published_backbone
from priorvla.configuration.recipe import RECIPES, list_recipes, load_recipe
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone
from priorvla.modeling_priorvla.generative_backbone import ImageFrame
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training import meta_pass
from priorvla.training.data.feature_cache import FeatureCache
from priorvla.training.data.instructions import Instructions
from priorvla.training.data.readers import load_trajectories
from priorvla.training.dry_run import DryRun, dry_run, frame_bytes
from priorvla.training.dry_run_table import dry_run_table
from priorvla.training.meta_policy import meta_batch, meta_draws
from priorvla.training.step_costs import bytes_of, saved_bytes

WINDOWS, WORDS = 3, 5
BLIND = {"expert_layers": ["motion"] * 2, "tap_layers": [None] * 2}
REAL_SIZE = [name for name in list_recipes() if "/" in str(load_recipe(name).get("backbone"))]
FAMILIES = ["paligemma", "qwen3_vl", "internvl"]  # those whose attention, positions or image tokens are their own


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, tiny_backbones):
    """Of a family: its tiny backbone."""
    folders: dict[str, Any] = {}

    def folder(family: str) -> Any:
        if family not in folders:
            folders[family] = getattr(tiny_backbones, f"save_{family}")(tmp_path_factory.mktemp(family))
        return folders[family]

    return folder


@pytest.fixture
def write_recipe(tmp_path, tiny_fields):
    """`(backbone, **model fields)` writes a recipe with a small expert; other options by `options`."""

    def write(backbone: Any, options: dict[str, Any] | None = None, **model: Any) -> Any:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe_of(backbone, tiny_fields, options or {}, model)))
        return file

    return write


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_fields, tiny_smolvlm):
    """A dry run over the first two layers of a tiny SmolVLM."""
    recipe = recipe_of(tiny_smolvlm, tiny_fields, {"fusion": "cross"}, {"backbone_layers": 2})
    file = tmp_path_factory.mktemp("plain") / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return dry_run(file, words=WORDS)


def recipe_of(backbone: Any, tiny_fields: Any, options: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    model = {"expert": {**tiny_fields["expert"], "action_dims": [4], "state_dims": [3]}, **model}
    training = {"per_device_train_batch_size": WINDOWS, **options.get("training", {})}
    return {**options, "backbone": str(backbone), "model": model, "training": training}


def real_model(run: DryRun, folder: Any) -> PriorVLAModel:
    """With weights, on the CPU; without the tokens around images, which a dry run leaves out."""
    backbone = load_backbone(None, folder)
    if backbone.language_reads_vision:
        backbone.frame = ImageFrame()
    backbone.truncate(run.config.taps[-1])
    return PriorVLAModel(run.config).attach_backbone(backbone).train()


def real(value: Any) -> Any:
    """An argument that is a shape, as zeros on the CPU."""
    if hasattr(value, "hidden_states"):
        return replace(value, hidden_states=real(value.hidden_states))
    if isinstance(value, tuple):
        return type(value)(*map(real, value))
    return torch.zeros_like(value, device="cpu") if isinstance(value, Tensor) and value.is_meta else value


def attention_counted() -> FlopCounterMode:
    """torch's own counter, which by itself leaves out the attention of CPUs."""
    own = {packet: rule for packet, rule in meta_pass.FORMULAS.items() if "for_cpu" in str(packet)}

    def of_shapes(rule: Any) -> Any:
        def count(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
            empty = [torch.empty(shape, device="meta") for shape in shapes if isinstance(shape, torch.Size)]
            return rule(*empty)

        return count

    return FlopCounterMode(display=False, custom_mapping={packet: of_shapes(rule) for packet, rule in own.items()})


def assert_costs(run: DryRun, model: PriorVLAModel) -> None:
    """That a real step of `model` takes what `run` says."""
    batch = meta_batch(model, WINDOWS, WORDS, cached=run.cached) | {"draws": meta_draws(model, WINDOWS)}
    batch = {name: real(value) for name, value in batch.items()}
    assert model.backbone is not None
    weights = list(chain(model.parameters(), model.buffers(), model.backbone.parameters(), model.backbone.buffers()))
    given = [value for value in batch.values() if isinstance(value, Tensor)]
    given += [value.hidden_states for value in batch.values() if hasattr(value, "hidden_states")]
    given += [value.mask for value in batch.values() if hasattr(value, "mask")] + list(batch["draws"])
    losses: list[Tensor] = []
    with attention_counted() as count:
        kept = saved_bytes(lambda: losses.append(model(**batch).loss), [*weights, *given])
        losses[0].backward()
    assert run.memory["activations"] == kept > 0
    assert run.flops == count.get_total_flops() > 0
    assert run.memory["batch"] == bytes_of(given)
    assert run.memory["weights"] == bytes_of(weights)
    assert run.memory["gradients"] == bytes_of(p.grad for p in model.parameters() if p.grad is not None)
    assert run.memory["moving average"] == bytes_of(p for p in model.parameters() if p.requires_grad)


# --- the shipped recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL_SIZE)
def test_a_real_size_recipe_runs_and_its_head_says_what_it_costs(name):
    run = dry_run(name)
    head = (RECIPES / f"{name}.yaml").read_text().split("backbone:")[0]
    memory, seconds = map(float, re.search(r"([\d.]+) GB and, at 40 TFLOP/s, ([\d.]+) s a step", head).groups())
    assert run.memory_bytes / 1e9 == pytest.approx(memory, rel=0.02)
    assert run.flops / 40e12 == pytest.approx(seconds, rel=0.1)
    if run.cached:
        encoding, size = map(float, re.search(r"([\d.]+) s and ([\d.]+) MB a frame", head).groups())
        assert run.frame_flops / 40e12 == pytest.approx(encoding, rel=0.05)
        assert run.frame_bytes / 1e6 == pytest.approx(size, rel=0.02)
    assert run.backbone == load_recipe(name)["backbone"] and f"--config {name} " in head
    assert run.layers_kept == run.config.taps[-1] <= run.layers


def test_there_is_a_recipe_of_real_size_for_every_family():
    kinds = {published_backbone(load_recipe(name)["backbone"]).config["model_type"] for name in REAL_SIZE}
    assert kinds == {"smolvlm", "paligemma", "qwen3_vl", "internvl"}


@pytest.mark.parametrize("name", ["vla_small", "vision_action_prior_small"])
def test_a_small_recipe_runs(name, capsys):
    assert main(["info", "--dry-run", name, "--cameras", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 camera, 112 x 112 pixels, 64 tokens each" in said and "this recipe's" in said
    assert ("none are read" in said) == (name != "vla_small")


@pytest.mark.parametrize("source", list_published_backbones())
def test_a_published_shape_has_as_many_parameters_as_were_published(source):
    published = published_backbone(source)
    kind = AutoModel if source in PACKAGED_BACKBONES else AutoModelForImageTextToText
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.for_model(**published.config))
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(published.parameters, rel=0.05)
    assert published.licence


# --- what it says is so -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["latent", "joint", "gated"])
def test_a_step_from_cached_features_costs_what_it_says(fusion, write_recipe, tiny_smolvlm):
    run = dry_run(write_recipe(tiny_smolvlm, {"fusion": fusion}), words=WORDS)
    assert run.cached and run.config.fusion == fusion and run.config.num_cameras == 2
    assert_costs(run, real_model(run, tiny_smolvlm))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_through_a_backbone_that_is_trained_costs_what_it_says(family, write_recipe, folder_of):
    fields = {"backbone_training": "lora", "lora": {"r": 2}, "backbone_layers": 2}
    run = dry_run(write_recipe(folder_of(family), {"fusion": "joint"}, **fields), words=WORDS)
    assert not run.cached and run.parameters["backbone"][0] > 0 and run.step_flops_without_backbone < run.flops
    assert_costs(run, real_model(run, folder_of(family)))


@pytest.mark.parametrize("fields", [{"backbone_training": "full"}, {"tail": "backbone"}])
def test_other_ways_to_train_cost_what_it_says(fields, write_recipe, tiny_smolvlm):
    run = dry_run(write_recipe(tiny_smolvlm, {"fusion": "latent"}, **fields), words=WORDS)
    assert_costs(run, real_model(run, tiny_smolvlm))
    assert (run.step_flops_without_backbone is None) == ("tail" in fields)


def test_a_backbone_that_is_cut_costs_what_it_says_and_parameters_are_told_apart(plain, tiny_smolvlm):
    model = real_model(plain, tiny_smolvlm)
    assert_costs(plain, model)
    assert (plain.layers_kept, plain.layers) == (2, 4)
    assert plain.parameters["backbone"] == (0, sum(p.numel() for p in model.backbone.parameters()))
    assert sum(trained for trained, _ in plain.parameters.values()) == sum(p.numel() for p in model.parameters())
    alone = PriorVLAModel(PriorVLAConfig(expert={**plain.config.expert.to_dict(), **BLIND}))
    assert plain.parameters["expert"] == (sum(p.numel() for p in alone.expert.parameters()), 0)


@pytest.mark.parametrize("family", ["dual_encoder", "smolvlm"])
def test_a_frame_takes_as_many_bytes_as_in_the_feature_cache(
    family, write_recipe, folder_of, write_demonstrations, bodies, tmp_path
):
    folder, taps = folder_of(family), [1, 2]
    source = load_trajectories(write_demonstrations(tmp_path / "data", bodies[0], [4, 3]), frames=True)
    processor = PriorVLAProcessor.for_backbone(folder, bodies)
    instructions = Instructions.of_sources([source], processor)
    cache = FeatureCache(tmp_path, source, load_backbone(None, folder), processor, taps, instructions)
    words = instructions.input_ids.shape[1]
    expert = {"hidden_size": 16, "expert_layers": ["vision_language"] * 2, "tap_layers": taps}
    run = dry_run(write_recipe(folder, {"fusion": "gated"}, num_cameras=1, expert=expert), words=words)
    assert run.frame_bytes == cache.bytes_per_step
    assert frame_bytes(run.config, load_backbone(None, folder), words) == cache.bytes_per_step


def test_settings_of_the_recipe_count(plain, write_recipe, tiny_smolvlm):
    small = {"backbone_dtype": "bfloat16", "image_size": 56, "image_tokens": 4}
    pooled = dry_run(write_recipe(tiny_smolvlm, {"fusion": "cross", **small}), words=WORDS)
    assert (pooled.image_size, pooled.tokens_per_image) == ((56, 56), plain.tokens_per_image)
    assert 2 * pooled.frame_bytes == plain.frame_bytes
    training = {"gradient_accumulation_steps": 4, "ema_decay": 0, "bf16": True, "gradient_checkpointing": True}
    fewer = dry_run(
        write_recipe(tiny_smolvlm, {"fusion": "cross", "training": training}, backbone_layers=2), words=WORDS
    )
    assert fewer.step_flops > 4 * plain.step_flops  # layers are computed again
    assert fewer.memory["activations"] < plain.memory["activations"] and not fewer.memory["moving average"]
    assert "half as large" in dry_run_table(fewer, 40) and "4 times 3" in dry_run_table(fewer, 40)
    once, often = (
        dry_run(write_recipe(tiny_smolvlm, {"fusion": "cross", "training": {"flow_draws": draws}}), words=WORDS)
        for draws in (1, 4)
    )
    assert once.step_flops < often.step_flops < 4 * once.step_flops
    assert once.frame_flops == often.frame_flops  # what is seen and heard is computed once


def test_a_prior_gives_its_expert(write_recipe, tiny_smolvlm, tiny_priors, tmp_path):
    motion = tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, seed=0)
    prior, bodies = tiny_priors.make_prior([motion])
    folder = tiny_priors.save_prior(prior, bodies, tmp_path / "prior")
    file = write_recipe(tiny_smolvlm, {"prior": str(folder)})
    content = yaml.safe_load(file.read_text())
    del content["model"]["expert"]
    file.write_text(yaml.safe_dump(content))
    run = dry_run(file)
    assert run.config.expert.to_dict() == {**prior.config.expert.to_dict()}
    assert run.parameters["trajectory encoder"][0] == sum(p.numel() for p in prior.encoder.parameters())


def test_over_a_vision_action_prior_the_backbone_is_used_as_that_prior_uses_it(write_recipe, tiny_smolvlm, tmp_path):
    reference = describe_backbone(tiny_smolvlm, source="hub", name="tiny", image_size=(56, 56), dtype="bfloat16")
    fields = {name: reference[name] for name in ("vision_hidden_size", "text_hidden_size")}
    backbone = {key: reference[key] for key in BACKBONE_KEYS}
    config = PriorVLAConfig(fusion="cross", language=False, backbone=backbone, backbone_layers=4, **fields)
    PriorVLAModel(config).save_pretrained(tmp_path / "seeing")
    file = write_recipe(tiny_smolvlm, {"prior": str(tmp_path / "seeing")})
    content = yaml.safe_load(file.read_text())
    del content["model"]["expert"]
    file.write_text(yaml.safe_dump(content))
    run = dry_run(file, cameras=1)
    assert run.image_size == (56, 56) and run.tokens_per_image == 16
    assert run.frame_bytes == 2 * len(run.config.taps) * (16 + run.words) * 32  # in bfloat16


# --- what is wrong is said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"backbone": "nobody/nothing"}, "known are .*Qwen/Qwen3-VL-2B-Instruct.* hf download nobody/nothing"),
        ({"backbon": "x"}, "'backbon' is unknown, did you mean 'backbone'"),
        ({"model": {"fusions": "x"}}, "'fusions' is unknown, did you mean 'fusion'"),
        ({"kind": "action"}, "kind is 'action', a dry run is of rungs 2 and 3"),
        ({"fusion": "crosses"}, "fusion='crosses' is unknown"),
        (
            {"image_size": 100, "backbone": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"},
            "of 4 patches of 16 pixels",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_with_its_remedy(recipe, says, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises((ValueError, StrictDataclassError), match=says):
        dry_run(file)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info"], "name a checkpoint, or a recipe with --dry-run"),
        (["info", "a", "--dry-run", "vla_small"], "leave checkpoints and --dataset out"),
        (["info", "--dry-run", "no_such"], "neither a file nor a shipped recipe"),
        (["info", "--dry-run", "vla_small", "--cameras", "0"], "--cameras 0 must be at least 1"),
        (["info", "--dry-run", "vla_small", "--words", "-3"], "--words -3 must be at least 1"),
    ],
)
def test_the_command_says_how_it_is_used(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_time_is_for_the_stated_throughput(plain):
    large = replace(plain, step_flops=80 * 10**12)
    assert re.search(r"from images +80\.000 +2\.0000", dry_run_table(large, 40))
    assert re.search(r"from images +80\.000 +4\.0000", dry_run_table(large, 20))
    with pytest.raises(ValueError, match="--tflops 0 must be positive"):
        dry_run_table(plain, 0)
