"""What stands around images and words, how long words may be, and what size images come in."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from priorvla.configuration.embodiment import Embodiment
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone
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


def test_templates_of_older_repositories_are_found(llava, copy_of):
    template = (llava / "chat_template.jinja").read_text()
    folder = copy_of(llava, None)
    assert LlavaBackbone.prompt_format(folder, None).name == "raw"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert LlavaBackbone.prompt_format(folder, None) == LlavaBackbone.prompt_format(llava, None)


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
    assert read(whole, text) == read(whole, "open the red door now")
    assert read(cut, text) == read(whole, "open the red")
    with pytest.raises(ValueError, match=r"max_text_length=2 has no room for what stands around an instruction"):
        PriorVLAProcessor.for_backbone(llava, [BODY], max_text_length=2)(embodiment="arm", text="open")


def test_words_with_the_templates_own_sign_in_them_stay_what_they_are(llava):
    processor = PriorVLAProcessor.for_backbone(llava, [BODY])
    assert processor(embodiment="arm", text="press {} now")["input_ids"].shape == (1, 32)
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
    with pytest.raises(ValueError, match="gives 16 tokens an image, the model was built for 4: make it with that"):
        load_backbone(describe_backbone(tiny_backbone, **settings, tokens_per_image=7), plain)
    with pytest.raises(ValueError, match="tokens_per_image=0 must be at least 1"):
        describe_backbone(tiny_backbone, **settings, tokens_per_image=0)
