"""What stands around images and words, how long words may be, and what size images come in."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone, used_before
from priorvla.modeling_priorvla.idefics3_backbone import Idefics3Backbone
from priorvla.modeling_priorvla.image_processors import load_image_processor, made_image_size
from priorvla.modeling_priorvla.llava_backbone import LlavaBackbone
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.modeling_priorvla.prompt_format import PromptFormat
from priorvla.modeling_priorvla.qwen_vl_backbone import QwenVLBackbone

BODY = Embodiment("arm", ["a"], ["s"], 10.0, cameras=["front"])
CHAT_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def llava(tmp_path_factory, tiny_backbones):
    return tiny_backbones.save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, tiny_backbones):
    return tiny_backbones.save_qwen3_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def copy_of(tmp_path):
    """`(folder, template)`: the same backbone with another chat template; None for none."""

    def copy(folder, template):
        own = shutil.copytree(folder, tmp_path / "backbone")
        (own / "chat_template.jinja").unlink()
        if template is not None:
            (own / "chat_template.jinja").write_text(template)
        return own

    return copy


def read(processor: PriorVLAProcessor, text: str) -> str:
    """What the processor makes of an instruction, without its padding."""
    batch = processor(embodiment="arm", text=text)
    return processor.tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_backbone_is_asked_as_its_chat_template_says_or_plainly(llava):
    chat, raw = (LlavaBackbone.prompt_format(llava, prompt) for prompt in ("chat", "raw"))
    assert LlavaBackbone.prompt_format(llava, None) == chat
    assert chat == PromptFormat("<|im_start|>user\n", "", "\n", "{}" + CHAT_SUFFIX, "chat")
    assert raw == PromptFormat(text_template="\n{}")


def test_the_checkpoint_says_which_so_that_backbone_and_processor_agree(llava):
    for asked, said in ((None, "chat"), ("raw", "raw")):
        reference = describe_backbone(llava, source="hub", name="tiny", prompt=asked)
        assert reference["prompt"] == said
        frame = load_backbone(reference, llava).frame
        processor = PriorVLAProcessor.for_backbone(llava, [BODY], prompt=reference["prompt"])
        assert (len(frame.start) > 0, "assistant" in read(processor, "open the door")) == (said == "chat",) * 2


def test_a_template_that_knows_no_images_is_no_chat_with_them(llava, copy_of):
    folder = copy_of(llava, "{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert LlavaBackbone.prompt_format(folder, None).name == "raw"
    with pytest.raises(ValueError, match="has no chat template that knows images: use prompt='raw'"):
        LlavaBackbone.prompt_format(folder, "chat")


def test_a_template_that_puts_words_before_images_is_refused(llava, copy_of):
    folder = copy_of(
        llava, "{% for message in messages %}{{ message['content'][2]['text'] }}<image><image>{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"expected '<image>' twice and then the text: use prompt='raw'"):
        LlavaBackbone.prompt_format(folder, None)


def test_a_template_that_treats_images_differently_is_refused(llava, copy_of):
    numbered = "Picture 1: <image>\nPicture 2: <image>{{ m['content'][2]['text'] }}"
    folder = copy_of(llava, "{% for m in messages %}" + numbered + "{% endfor %}")
    with pytest.raises(ValueError, match="it does not treat every image alike, use prompt='raw'"):
        LlavaBackbone.prompt_format(folder, None)


def test_templates_of_older_repositories_are_found_before_the_tokenizers_own(llava, copy_of):
    template = (llava / "chat_template.jinja").read_text()
    folder = copy_of(llava, "{{ messages[0]['content'] }}")  # of a language model, which knows no images
    assert LlavaBackbone.prompt_format(folder, None).name == "raw"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert LlavaBackbone.prompt_format(folder, None) == LlavaBackbone.prompt_format(llava, None)


def test_a_token_that_begins_every_text_begins_what_a_template_writes_once(llava, copy_of):
    folder = copy_of(llava, (llava / "chat_template.jinja").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    plain = LlavaBackbone.prompt_format(llava, None)
    assert LlavaBackbone.prompt_format(folder, None).start == "<s>" + plain.start
    assert LlavaBackbone.prompt_format(folder, "raw").start == "<s>"
    (folder / "chat_template.jinja").write_text("<s>" + (llava / "chat_template.jinja").read_text())
    assert LlavaBackbone.prompt_format(folder, None).start == "<s>" + plain.start


def test_what_a_model_was_trained_with_outlives_its_template(llava, copy_of):
    reference = describe_backbone(llava, source="hub", name="tiny")
    trained = load_backbone(reference, llava)
    folder = copy_of(llava, (llava / "chat_template.jinja").read_text().replace("user", "assistant"))
    assert load_backbone(None, folder).frame != trained.frame
    assert load_backbone(reference, folder).frame == trained.frame


def test_a_checkpoint_from_before_prompts_were_told_is_read_as_it_was_trained(llava):
    reference = describe_backbone(llava, source="hub", name="tiny")
    before = {key: reference[key] for key in ("source", "name", "revision", "sha256", "dtype")}
    assert load_backbone(before, llava).prompt == LlavaBackbone.prompt_format(llava, "raw")
    assert used_before(before, llava)["prompt"] == "raw" and used_before({}, llava)["prompt"] is None


def test_a_backbone_that_is_used_otherwise_is_refused(llava):
    reference = describe_backbone(llava, source="hub", name="tiny", prompt="raw", dtype="float32")
    for given, said in (
        ({"prompt": "chat"}, "around_images="),
        ({"prompt": "raw", "image_size": (42, 42)}, r"image_size=\[42, 42\]"),
        ({"prompt": "raw", "dtype": "bfloat16"}, "dtype=bfloat16"),
    ):
        other = load_backbone(describe_backbone(llava, source="hub", name="tiny", **given), llava)
        with pytest.raises(ValueError, match=rf"the backbone has {said}.*, the model was built for"):
            load_backbone(reference, other)


def test_an_unknown_prompt_and_one_for_plain_words_are_refused(llava, tiny_backbone):
    with pytest.raises(ValueError, match="prompt='plain' is unknown, use chat or raw"):
        describe_backbone(llava, source="hub", name="tiny", prompt="plain")
    with pytest.raises(ValueError, match="prompt='raw' is of generative backbones"):
        describe_backbone(tiny_backbone, source="hub", name="tiny", prompt="raw")


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_long_instruction_loses_its_own_end_and_never_what_stands_around_it(llava):
    whole = PriorVLAProcessor.for_backbone(llava, [BODY])
    text = "open the red door now"
    needed = int(whole(embodiment="arm", text=text)["attention_mask"].sum())
    cut = PriorVLAProcessor.for_backbone(llava, [BODY], max_text_length=needed - 2)
    assert read(cut, text) == read(whole, "open the red")
    for length in (2, needed - 5):  # not even the template; the template and no word
        with pytest.raises(ValueError, match=f"max_text_length={length} has no room for an instruction beside what"):
            PriorVLAProcessor.for_backbone(llava, [BODY], max_text_length=length)(embodiment="arm", text=text)


def test_one_long_word_is_cut_and_not_lost(llava, tiny_backbones):
    processor = PriorVLAProcessor.for_backbone(llava, [BODY])
    needed = int(processor(embodiment="arm", text="red")["attention_mask"].sum())
    processor.max_text_length = needed
    assert read(processor, "red:red:red") == read(processor, "red")


def test_words_with_the_templates_own_sign_in_them_stay_what_they_are(llava):
    processor = PriorVLAProcessor.for_backbone(llava, [BODY])
    plain = read(processor, "press now").split()
    marked = read(processor, "press {} now").split()
    assert marked[:1] + marked[2:] == plain and len(marked) == len(plain) + 1
    with pytest.raises(ValueError, match=r"must have \{\} once, where the instruction stands"):
        PriorVLAProcessor(None, AutoTokenizer.from_pretrained(llava), [BODY], text_template="no place")


def test_a_saved_processor_reads_as_before(llava, tmp_path):
    processor = PriorVLAProcessor.for_backbone(llava, [BODY], image_size=(42, 28))
    processor.save_pretrained(tmp_path)
    again = PriorVLAProcessor.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    batches = [p(embodiment="arm", text="open the door", images={"front": image}) for p in (processor, again)]
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])
    assert batches[0]["pixel_values"].shape == (1, 1, 3, 42, 28)


# --- images -----------------------------------------------------------------------------------------------------------


def test_a_size_that_is_asked_for_is_that_of_the_whole_picture(tmp_path):
    own = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 28, "width": 28}, do_center_crop=True)
    own.save_pretrained(tmp_path)
    assert made_image_size(str(tmp_path)) == (28, 28)
    picture = np.zeros((80, 80, 3), dtype=np.uint8)
    picture[:8] = 255  # a crop of the middle would not show it
    cropped, whole = (load_image_processor(str(tmp_path), size) for size in (None, (14, 21)))
    shown = [processor(picture, return_tensors="pt")["pixel_values"][0] for processor in (cropped, whole)]
    assert [tuple(image.shape) for image in shown] == [(3, 28, 28), (3, 14, 21)]
    assert shown[0][:, 0].max() < shown[1][:, 0].min()


def test_an_image_is_never_cut_into_tiles(tmp_path, tiny_backbones):
    folder = tiny_backbones.save_internvl(tmp_path / "internvl")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "crop_to_patches": True}))
    body = Embodiment("arm", ["a"], ["s"], 10.0, cameras=["front", "wrist"])
    wide, white = np.zeros((28, 84, 3), np.uint8), np.full((28, 28, 3), 255, np.uint8)
    pixels = PriorVLAProcessor.for_backbone(folder, [body])(embodiment="arm", images={"front": wide, "wrist": white})
    assert pixels["pixel_values"].shape[:2] == (1, 2)
    assert pixels["pixel_values"][0, 0].max() < pixels["pixel_values"][0, 1].min()


def test_what_is_left_beside_whole_patches_is_not_seen():
    def shape(side, patch, **fields):
        vision = SimpleNamespace(image_size=side, patch_size=patch)
        return SimpleNamespace(model_type="some", vision_config=vision, **fields), (side, side)

    assert Idefics3Backbone.grid_of(*shape(384, 14, scale_factor=3)) == (9, 9)  # as SmolVLM2-2.2B: 27 patches a side
    assert LlavaBackbone.grid_of(*shape(384, 14)) == (27, 27)
    with pytest.raises(ValueError, match=r"of 3 patches of 14 pixels, got \(392, 392\): use an image size of 378"):
        Idefics3Backbone.grid_of(*shape(392, 14, scale_factor=3))
    with pytest.raises(ValueError, match=r"images of \(9, 9\) pixels are smaller than a patch"):
        LlavaBackbone.grid_of(*shape(9, 14))


def test_a_size_that_is_the_processors_own_leaves_its_crop_as_it_is(tmp_path):
    own = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 28, "width": 28}, do_center_crop=True)
    own.save_pretrained(tmp_path)
    assert load_image_processor(str(tmp_path), (28, 28)).do_center_crop


def test_images_that_a_family_packs_itself_come_in_one_size_and_in_its_colours(qwen):
    settings = {"source": "hub", "name": "tiny"}
    assert made_image_size(str(qwen)) is None
    with pytest.raises(
        ValueError, match="its image processor leaves images their size, a batch has one: give image_size="
    ):
        load_image_processor(str(qwen))
    own = describe_backbone(qwen, **settings)["image_size"]
    assert tuple(own) == QwenVLBackbone.image_size_of(load_backbone(None, qwen).model.config)
    processor = PriorVLAProcessor.for_backbone(qwen, [BODY])
    white = processor(embodiment="arm", images={"front": np.full((9, 9, 3), 255, np.uint8)})["pixel_values"]
    assert list(white.shape[-2:]) == own
    saved = json.loads((qwen / "preprocessor_config.json").read_text())
    expected = [(1 - mean) / std for mean, std in zip(saved["image_mean"], saved["image_std"], strict=True)]
    np.testing.assert_allclose(white[0, 0, :, 0, 0], expected, atol=1e-5)


def test_fewer_tokens_are_averages_over_cells_of_the_image(tiny_backbone):
    settings = {"source": "hub", "name": "tiny"}
    plain, pooled = (
        load_backbone(
            describe_backbone(tiny_backbone, source="hub", name="tiny", tokens_per_image=budget), tiny_backbone
        )
        for budget in (None, 7)
    )
    assert (plain.tokens_per_image, pooled.tokens_per_image) == (16, 4)
    pixels = torch.randn(2, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    whole = plain.encode_vision(pixels).hidden_states.unflatten(2, (4, 4))  # (B, T, rows, columns, d)
    cells = whole.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5)).flatten(2, 3)
    seen = pooled.encode_vision(pixels)
    torch.testing.assert_close(seen.hidden_states, cells, atol=1e-6, rtol=0)
    assert seen.mask.shape == (2, 4) and seen.mask.all()
    with pytest.raises(ValueError, match="has tokens_per_image=16, the model was built for 4: pass its folder"):
        load_backbone(describe_backbone(tiny_backbone, **settings, tokens_per_image=7), plain)
    with pytest.raises(ValueError, match="tokens_per_image=0 must be at least 1"):
        describe_backbone(tiny_backbone, **settings, tokens_per_image=0)
