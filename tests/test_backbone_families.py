"""What rungs 2 and 3 promise, on every family of backbones: tiny models of transformers' own classes, real files.

What is particular to one family is tested beside its adapter; what is particular to a host, in test_generative_hosts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from math import isqrt

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.attached_backbone import TRAINED
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.trajectory_dataset import expert_dims

H, SIZE, PATCHES = 6, (28, 28), 4  # of an image of every generative family: 2 x 2 tokens
FAKE = "<fake_token_around_image>"
IDEFICS = (FAKE + "<global-img>", "<image>", FAKE)
QWEN = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
CHATML = ("<|im_start|>user\n", "{}<|im_end|>\n<|im_start|>assistant\n")
GEMMA3 = ("<bos><start_of_turn>user\n", "{}<end_of_turn>\n<start_of_turn>model\n")
# What each reads: before all images; before, as and after each of them; the words and what is around them.
SEQUENCES = {
    "smolvlm": ("<|im_start|>", IDEFICS, "{}"),
    "idefics3": ("<|begin_of_text|>User:", IDEFICS, "{}<end_of_utterance>\nAssistant:"),
    "paligemma": ("", ("", "<image>", ""), "<bos>{}\n"),
    "paligemma2": ("", ("", "<image>", ""), "<bos>{}\n"),
    "gemma3": (GEMMA3[0], ("\n\n<start_of_image>", "<image_soft_token>", "<end_of_image>\n\n"), GEMMA3[1]),
    "qwen2_5_vl": (CHATML[0], QWEN, CHATML[1]),
    "qwen3_vl": (CHATML[0], QWEN, CHATML[1]),
    "internvl": (CHATML[0], ("<img>", "<IMG_CONTEXT>", "</img>\n"), CHATML[1]),
    "llava": (CHATML[0], ("", "<image>", "\n"), CHATML[1]),
}
GENERATIVE = list(SEQUENCES)
FAMILIES = ["dual_encoder", *GENERATIVE]
LORA = {"r": 2, "lora_alpha": 4}
TEXTS = ("open the drawer now", "press the red button")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_training = pytest.mark.parametrize("training", ["frozen", "lora", "full"])
generative_family = pytest.mark.parametrize("family", GENERATIVE)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, tiny_backbones):
    """Of a family, with the layout of a Hub repository."""

    @cache
    def make(family):
        return getattr(tiny_backbones, f"save_{family}")(tmp_path_factory.mktemp(family))

    return make


@pytest.fixture(scope="module")
def reference_to(folder_of):
    """`(family, **settings)`: what a checkpoint's config says of it, and of the sizes to build for."""

    @cache
    def describe(family, **settings):
        return describe_backbone(folder_of(family), source="hub", name="tiny", image_size=SIZE, **settings)

    return describe


@pytest.fixture(scope="module")
def backbone_of(folder_of, reference_to):
    """`(family, dtype=None)`, frozen and shared."""

    @cache
    def load(family, dtype=None):
        return load_backbone(reference_to(family, dtype=dtype), folder_of(family))

    return load


@pytest.fixture(scope="module")
def robots(bodies):
    """Two bodies of other dims, with two cameras each."""
    return [replace(body, cameras=["front", "wrist"]) for body in bodies]


@pytest.fixture(scope="module")
def processor_of(folder_of, robots):
    @cache
    def make(family):
        lengths = {"chunk_size": H, "max_text_length": 12}
        return PriorVLAProcessor.for_backbone(folder_of(family), robots, **lengths, image_size=SIZE)

    return make


@pytest.fixture(scope="module")
def make_model(folder_of, reference_to, backbone_of, robots, tiny_fields):
    """`(family, dtype="float32", **fields)`: shared, always the same weights, in which every path has an effect."""

    @cache
    def make(family, dtype="float32", **fields):
        described = reference_to(family, dtype=dtype)
        config = PriorVLAConfig(
            **{
                "fusion": "gated",
                "expert": {**tiny_fields["expert"], **expert_dims(robots)},
                "fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
                "backbone": {key: described[key] for key in BACKBONE_KEYS},
                "backbone_layers": described["num_layers"],
                "vision_hidden_size": described["vision_hidden_size"],
                "text_hidden_size": described["text_hidden_size"],
                "num_cameras": 2,
                "num_inference_steps": 1,
                "lora": LORA if fields.get("backbone_training") == "lora" else None,
                **fields,
            }
        )
        torch.manual_seed(0)
        model = PriorVLAModel(config).to(getattr(torch, dtype))
        if config.backbone_training == "frozen":
            return awake(model).attach_backbone(backbone_of(family, dtype)).eval()
        return awake(model.attach_backbone(folder_of(family))).eval()

    return make


@pytest.fixture(scope="module")
def observe(processor_of, robots):
    """`(family, text=TEXTS[0])`: two robots, the second without its second camera, and what they are told."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, *SIZE, 3), dtype=np.uint8)
    front, wrist = robots[0].cameras

    def make(family, text=TEXTS[0]):
        (first, second), processor = pictures, processor_of(family)
        images = [{front: first[0], wrist: first[1]}, {front: second[0]}]
        state = [np.zeros(robot.state_dim) for robot in robots]
        names = [robot.name for robot in robots]
        return dict(processor(embodiment=names, state=state, images=images, text=text))

    return make


def awake(model):
    """What starts at zero has moved; so have a backbone's trained weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def act(model, observation, **changes):
    given = {key: value for key, value in observation.items() if key != "action_mask"}
    noise = torch.randn(len(given["state"]), H, 7, generator=torch.Generator().manual_seed(2))
    return model.sample_actions(**{**given, "noise": noise, **changes})


def gradients_of(model, observation):
    """Of a training step, by the names of the parameters that it reaches."""
    actions = torch.randn(2, H, 7, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)  # of dropout
    model.train()(actions=actions, **observation, generator=torch.Generator().manual_seed(0)).loss.backward()
    reached = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(), model.eval()
    return {name: gradient for name, gradient in reached.items() if gradient.any()}


def told(observation):
    """What `encode_language` takes of it."""
    return observation["input_ids"], observation["attention_mask"]


# --- what transformers computes ---------------------------------------------------------------------------------------


@generative_family
def test_taps_and_tail_are_the_hidden_states_of_a_plain_forward_over_the_familys_own_sequence(
    family, backbone_of, processor_of, robots, folder_of
):
    """For PaliGemma the plain forward is of the images alone (which transformers shows the words too), and then of the
    language model with a mask written out here, in which words see images and words but no image sees a word."""
    backbone, taps = backbone_of(family), (0, 1, 3, 4)
    pictures = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    batch = processor_of(family)(
        embodiment=robots[0].name, images=dict(zip(robots[0].cameras, pictures, strict=True)), text=TEXTS[0]
    )
    vision = backbone.encode_vision(batch["pixel_values"], taps=taps)
    language = backbone.encode_language(vision, *told(batch), taps=taps)
    tokenizer = AutoTokenizer.from_pretrained(folder_of(family))
    further = torch.tensor([tokenizer.convert_tokens_to_ids(["block", "up"])])
    tail = backbone.encode_tail(language, backbone.language_model.get_input_embeddings()(further))

    start, (before, image, after), template = SEQUENCES[family]
    parts = [start, *[before, image * PATCHES, after] * 2, template.format(TEXTS[0])]
    input_ids = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
    input_ids = torch.tensor([[*input_ids, *further[0].tolist()]])
    is_image = input_ids[0] == tokenizer.convert_tokens_to_ids(image)
    words = slice(-2 - int(batch["attention_mask"].sum()), -2)
    expected = plain_forward(backbone.model, folder_of(family), pictures, input_ids, is_image)
    for tap in taps:
        torch.testing.assert_close(vision.tap(tap), expected[tap][:, is_image], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(language.tap(tap)[language.mask], expected[tap][0, words], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tail, expected[-1][:, -2:], atol=1e-5, rtol=1e-5)


def plain_forward(model, folder, pictures, input_ids, is_image):
    """Hidden states of transformers' own model, told of the images by transformers' own image processor."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    kind = getattr(transformers, settings["image_processor_type"].removesuffix("Pil") + "Pil")
    own = {"do_image_splitting": False, "size": settings["max_image_size"]} if "max_image_size" in settings else {}
    seen = kind.from_pretrained(folder)(images=list(pictures), return_tensors="pt", **own)
    given = {key: seen[key] for key in ("pixel_values", "image_grid_thw") if key in seen}
    told_of_images = is_image[None].long()
    family = model.config.model_type
    if family.startswith("qwen"):
        given["mm_token_type_ids"] = told_of_images
    if family == "gemma3":
        given["token_type_ids"] = told_of_images
    if family != "paligemma":
        return model(input_ids=input_ids, output_hidden_states=True, **given).hidden_states
    given |= {"input_ids": input_ids[:, is_image], "token_type_ids": torch.zeros_like(input_ids[:, is_image])}
    alone = model(output_hidden_states=True, **given).hidden_states
    embeddings = model.get_input_embeddings()(input_ids).clone()
    embeddings[:, is_image] = alone[0]
    place = torch.arange(len(is_image))
    of_words = ~is_image & (place < len(place) - 2)  # the tail is causal
    sees = (place[:, None] >= place) | (is_image[:, None] & is_image) | (of_words[:, None] & of_words)
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo().min)[None, None]
    states = model.language_model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True)
    for whole, part in zip(states.hidden_states, alone, strict=True):
        torch.testing.assert_close(whole[:, is_image], part, atol=1e-5, rtol=1e-5)
    return states.hidden_states


# --- blind, and equal, to the bit -------------------------------------------------------------------------------------


@every_family
def test_vision_does_not_know_the_words_and_reading_leaves_it_as_it_was(family, backbone_of, observe):
    backbone, seen = backbone_of(family), observe(family)
    images = (seen["pixel_values"], seen["pixel_attention_mask"])
    vision = backbone.encode_vision(*images)
    first, other = (backbone.encode_language(vision, *told(observe(family, text))) for text in TEXTS)
    again = backbone.encode_language(vision, *told(seen))
    assert not torch.equal(first.hidden_states, other.hidden_states)
    assert torch.equal(first.hidden_states, again.hidden_states)
    assert torch.equal(vision.hidden_states, backbone.encode_vision(*images).hidden_states)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_family
def test_rung_2_does_not_hear_and_rung_3_begins_as_it_to_the_bit(family, dtype, make_model, observe):
    prior, seen, other = make_model(family, dtype, language=False), observe(family), observe(family, TEXTS[1])
    expected = act(prior, seen)
    assert torch.equal(act(prior, other), expected)
    policy = PriorVLAModel.from_vision_action_prior(prior).to(getattr(torch, dtype)).eval()
    assert torch.equal(act(policy, seen), expected) and torch.equal(act(policy, other), expected)
    awake(policy)
    assert not torch.equal(act(policy, seen), act(policy, other))


@every_family
def test_a_prefix_that_is_computed_once_gives_what_computing_it_at_every_step_gives(family, make_model, observe):
    hosts = [{"fusion": "joint"}, {"fusion": "latent", "tail": "backbone"}]
    for host in hosts[: 1 if family == "dual_encoder" else 2]:
        model = make_model(family, **host)
        cached, repeated = (
            act(model, observe(family), num_inference_steps=3, use_cache=use_cache) for use_cache in (True, False)
        )
        torch.testing.assert_close(cached, repeated, atol=1e-6, rtol=0)


# --- cameras and rows -------------------------------------------------------------------------------------------------


@every_family
def test_the_order_of_cameras_matters_and_an_absent_one_leaves_no_trace(family, make_model, observe):
    model, seen = make_model(family), observe(family)
    expected, swapped = act(model, seen), seen["pixel_values"].flip(1)
    assert (act(model, seen, pixel_values=swapped)[0] - expected[0]).abs().max() > 1e-3
    if model.backbone.language_reads_vision:
        here, there = (model.backbone.encode_vision(images) for images in (seen["pixel_values"], swapped))
        read = [model.backbone.encode_language(vision, *told(seen)).hidden_states for vision in (here, there)]
        assert not torch.allclose(*read, atol=1e-2), "also to the words"
    garbage = seen["pixel_values"].clone()
    garbage[1, 1] = float("nan")  # of the camera that is not there
    torch.testing.assert_close(act(model, seen, pixel_values=garbage), expected, atol=1e-6, rtol=0)


@every_family
def test_rows_of_other_prompts_and_cameras_are_what_they_are_alone(family, backbone_of, make_model, observe):
    seen = observe(family, ["open the drawer now", "press"])
    seen["pixel_attention_mask"] = torch.tensor([[True, True], [False, True]])
    backbone, taps = backbone_of(family), (0, 1, backbone_of(family).num_layers)
    vision = backbone.encode_vision(seen["pixel_values"], seen["pixel_attention_mask"], taps)
    language = backbone.encode_language(vision, *told(seen), taps)
    rows = [{key: value[index : index + 1] for key, value in seen.items()} for index in range(2)]
    for index, own in enumerate(rows):
        alone = backbone.encode_vision(own["pixel_values"][:, own["pixel_attention_mask"][0]], taps=taps)
        words = own["input_ids"][own["attention_mask"].bool()][None]
        read = backbone.encode_language(alone, words, taps=taps)
        found = vision.hidden_states[index][:, vision.mask[index]]
        torch.testing.assert_close(found, alone.hidden_states[0], atol=1e-5, rtol=1e-5)
        found = language.hidden_states[index][:, language.mask[index]]
        torch.testing.assert_close(found, read.hidden_states[0], atol=1e-5, rtol=1e-5)
    assert vision.hidden_states.transpose(1, 2)[~vision.mask].eq(0).all()
    assert language.hidden_states.transpose(1, 2)[~language.mask].eq(0).all()

    model, noise = make_model(family), torch.randn(2, H, 7, generator=torch.Generator().manual_seed(4))
    together = act(model, seen, noise=noise)
    alone = [act(model, own, noise=noise[index : index + 1]) for index, own in enumerate(rows)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


# --- training ---------------------------------------------------------------------------------------------------------


@every_training
@every_family
def test_gradients_reach_all_that_is_trained_and_checkpointing_does_not_change_them(
    family, training, make_model, observe
):
    model = make_model(family, backbone_training=training)
    gradients = gradients_of(model, observe(family))
    own = {name for name, _ in model.backbone.named_parameters()}
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    adapters = {name for name in own if ".lora_" in name}
    assert trained == {name for name in own if TRAINED + name in gradients}
    assert trained == adapters if training != "full" else len(trained) > 0.7 * len(own)
    assert len({name.split(".")[1] for name in adapters}) == (2 if training == "lora" else 0), "in both towers"
    model.gradient_checkpointing_enable()
    checkpointed = gradients_of(model, observe(family))
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(checkpointed, gradients)


@every_family
def test_numbers_are_finite_in_bfloat16_for_a_row_without_any_camera(family, make_model, observe):
    blind = {**observe(family), "pixel_attention_mask": torch.tensor([[True, True], [False, False]])}
    for host in [{}, {"fusion": "latent", "tail": "backbone"}][: 1 if family == "dual_encoder" else 2]:
        assert act(make_model(family, "bfloat16", **host), blind).isfinite().all()


# --- files ------------------------------------------------------------------------------------------------------------


@every_training
@every_family
def test_a_saved_policy_acts_the_same_with_its_backbone_attached_or_trained_inside(
    family, training, make_model, observe, folder_of, tmp_path
):
    model = make_model(family, backbone_training=training)
    model.save_pretrained(tmp_path)
    inside = {name.removeprefix(TRAINED) for name in load_file(tmp_path / "model.safetensors") if TRAINED in name}
    assert inside == set(model.trained_tensors()) and bool(inside) == (training != "frozen")
    loaded = PriorVLAModel.from_pretrained(tmp_path, backbone=folder_of(family)).eval()
    assert torch.equal(act(loaded, observe(family)), act(model, observe(family)))
    assert loaded.state_dict().keys() == model.state_dict().keys()


@every_family
def test_a_processor_comes_back_from_its_folder_alone_and_gives_the_same_batch(family, processor_of, observe, tmp_path):
    processor = processor_of(family)
    processor.save_pretrained(tmp_path)
    loaded = PriorVLAProcessor.from_pretrained(tmp_path, local_files_only=True)
    pictures = np.random.default_rng(5).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    given = {"embodiment": "large", "images": {"front": pictures[0], "wrist": pictures[1]}, "text": TEXTS[1]}
    ours, theirs = processor(**given), loaded(**given)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert ours["pixel_values"].shape == (1, 2, 3, *SIZE) and ours["input_ids"].shape == (1, 12)
    if family in SEQUENCES:
        tokenizer, words = processor.tokenizer, ours["input_ids"][ours["attention_mask"].bool()]
        assert words.tolist() == tokenizer.encode(SEQUENCES[family][2].format(TEXTS[1]), add_special_tokens=False)


# --- less of it -------------------------------------------------------------------------------------------------------


@every_family
def test_layers_above_the_last_tap_are_dropped_and_the_taps_keep_their_bits(
    family, backbone_of, folder_of, reference_to, observe
):
    whole, seen = backbone_of(family), observe(family)
    images = (seen["pixel_values"], seen["pixel_attention_mask"])
    expected = whole.encode_vision(*images, taps=(0, 1, 2))
    less = load_backbone(reference_to(family), folder_of(family))
    less.truncate(2)
    found = less.encode_vision(*images, taps=(0, 1, 2))
    assert torch.equal(found.hidden_states, expected.hidden_states)
    read = [b.encode_language(v, *told(seen), taps=(1, 2)) for b, v in ((whole, expected), (less, found))]
    assert torch.equal(read[0].hidden_states, read[1].hidden_states)
    count = [sum(parameter.numel() for parameter in b.parameters()) for b in (whole, less)]
    assert count[0] > count[1] if family in GENERATIVE else count[0] == count[1]


@generative_family
def test_a_policy_built_for_the_first_layers_carries_no_more_than_them(
    family, make_model, folder_of, observe, backbone_of
):
    model = make_model(family, backbone_layers=2)
    assert model.config.taps[-1] == 2
    expected = act(model, observe(family))
    assert len(backbone_of(family).language_model.layers) == 4, "a backbone that is shared stays whole"
    model.attach_backbone(folder_of(family))
    assert len(model.backbone.language_model.layers) == 2
    assert torch.equal(act(model, observe(family)), expected)


@every_family
def test_image_tokens_are_averaged_to_a_budget_and_words_still_read_all_of_them(
    family, backbone_of, folder_of, reference_to, observe
):
    whole, seen = backbone_of(family), observe(family)
    budget = whole.tokens_per_image // 4
    fewer = load_backbone(reference_to(family, tokens_per_image=budget), folder_of(family))
    assert fewer.tokens_per_image == budget
    images = (seen["pixel_values"], seen["pixel_attention_mask"])
    every, pooled = (backbone.encode_vision(*images, taps=(0, 1)) for backbone in (whole, fewer))
    half = isqrt(budget)
    cells = every.hidden_states.unflatten(2, (2, half, 2, half, 2)).mean(dim=(4, 6))
    torch.testing.assert_close(pooled.hidden_states, cells.flatten(2, 4), atol=1e-5, rtol=1e-5)
    words = [each.encode_language(vision, *told(seen)) for each, vision in ((whole, every), (fewer, pooled))]
    assert torch.equal(words[0].hidden_states, words[1].hidden_states)


# --- as the config says -----------------------------------------------------------------------------------------------


@every_family
def test_images_may_have_another_size_where_the_vision_tower_takes_it(family, folder_of, robots):
    folder, reference = folder_of(family), {"source": "hub", "name": "tiny"}
    if family == "gemma3":
        with pytest.raises(ValueError, match=r"28 x 28 pixels, got \(56, 56\).*ask for fewer tokens_per_image instead"):
            describe_backbone(folder, **reference, image_size=(56, 56))
        return
    reference = describe_backbone(folder, **reference, image_size=(56, 56))
    processor = PriorVLAProcessor.for_backbone(folder, robots, image_size=reference["image_size"])
    pictures = np.random.default_rng(6).integers(0, 256, (2, 90, 60, 3), dtype=np.uint8)
    batch = processor(embodiment="large", images={"front": pictures[0], "wrist": pictures[1]}, text=TEXTS[0])
    backbone = load_backbone(reference, folder)
    vision = backbone.encode_vision(batch["pixel_values"])
    tokens = vision.hidden_states[0, 0]
    assert reference["tokens_per_image"] == (64 if family == "dual_encoder" else 16) == len(tokens) / 2
    assert torch.pdist(tokens).min() > 1e-3, "every place of every image has its own token"
    assert backbone.encode_language(vision, *told(batch)).hidden_states.isfinite().all()


@generative_family
def test_a_chat_template_is_followed_where_there_is_one_unless_raw_is_asked_for(
    family, backbone_of, folder_of, reference_to, processor_of, observe
):
    folder = folder_of(family)
    if not (folder / "chat_template.jinja").exists():
        assert reference_to(family)["prompt"] == "raw"
        with pytest.raises(ValueError, match="no chat template that knows images: use prompt='raw'"):
            reference_to(family, prompt="chat")
        return
    assert reference_to(family)["prompt"] == "chat"
    raw, chat, seen = load_backbone(reference_to(family, prompt="raw"), folder), backbone_of(family), observe(family)
    plain = PriorVLAProcessor.for_backbone(folder, [], prompt="raw")
    assert len(plain.text_template) < len(processor_of(family).text_template)
    assert sum(map(len, raw.frame)) < sum(map(len, chat.frame)) and raw.fingerprint != chat.fingerprint
    here, there = (each.encode_vision(seen["pixel_values"], taps=(0, 2)) for each in (raw, chat))
    assert torch.equal(here.tap(0), there.tap(0)) and not torch.allclose(here.tap(2), there.tap(2), atol=1e-3)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("qwen3_5", "running state"), ("qwen3_5_moe", "running state"), ("lfm2_vl", "convolution layers")],
)
def test_a_hybrid_that_cannot_leave_out_a_camera_is_refused_with_the_reason(kind, reason, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"'{kind}'.*{reason}"):
        load_backbone(None, tmp_path)
    with pytest.raises(ValueError, match=rf"'{kind}'.*{reason}"):
        describe_backbone(tmp_path, source="hub", name="owner/name")


@pytest.mark.parametrize("family", ["paligemma2", "gemma3"])
def test_a_sequence_longer_than_a_sliding_window_is_refused_with_the_remedy(family, tiny_backbones, tmp_path):
    backbone = load_backbone(None, getattr(tiny_backbones, f"save_{family}")(tmp_path, sliding_window=9))
    with pytest.raises(ValueError, match=r"images and words are \d+ tokens.*see 9: use fewer cameras or smaller"):
        backbone.encode_vision(torch.zeros(1, 3, 3, *SIZE))
