"""Folders of backbones small enough to be run hundreds of times: the real classes of transformers, random weights.

Generative ones have a language model of 4 layers, 32 wide, and make 4 tokens (2 x 2) of an image of 28 pixels. Their
tokenizers know a few words and the tokens of their family, and chat templates, written by us, order these as the
family's do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    Dinov2Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

WORDS = ["open", "close", "the", "drawer", "door", "press", "button", "pick", "up", "red", "block", "now"]
BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SMOLVLM_TOKENS = {"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
IMAGE_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>"]
GEMMA_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
QWEN_TOKENS = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
IDEFICS3_TOKENS = {
    "pad_token": "<|finetune_right_pad_id|>",
    "eos_token": "<|end_of_text|>",
    "bos_token": "<|begin_of_text|>",
    "unk_token": "<unk>",
}
MARKS = ["\n", "\n\n", ":", "User", "Assistant", "user", "assistant", "model"]  # what templates write beside tokens

# Of every language model below; wide enough that a token's neighbours matter to it.
TEXT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
VISION_SIZES = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN_VISION_SIZES = {"hidden_size": 16, "intermediate_size": 48, "depth": 2, "num_heads": 2}  # heads of 8: 2 axes


def save_dual_encoder(folder: Path) -> Path:
    """A vision-text dual encoder: 28 px images, 16 patches, 2 layers each, widths 16 (vision) and 24 (text)."""
    tokenizer = word_tokenizer([*BERT_TOKENS.values(), *WORDS], unknown="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    vision = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    text = BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=tokenizer.get_vocab_size(),
    )
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=8)
    VisionTextDualEncoderModel(config=config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **BERT_TOKENS).save_pretrained(folder)
    BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(folder)
    return folder


def save_smolvlm(folder: Path) -> Path:
    """A SmolVLM with its head, as on the Hub: 28 px images, 4 tokens each, a language model of 4 layers, 32 wide."""
    tokenizer = word_tokenizer([*SMOLVLM_TOKENS.values(), *IMAGE_TOKENS, *WORDS], unknown="<|endoftext|>")
    config = SmolVLMConfig(
        vision_config={**VISION_SIZES, "image_size": 28, "patch_size": 7},
        text_config=LlamaConfig(
            **TEXT_SIZES,
            vocab_size=tokenizer.get_vocab_size(),
            bos_token_id=tokenizer.token_to_id("<|im_start|>"),
            eos_token_id=tokenizer.token_to_id("<|im_end|>"),
            pad_token_id=tokenizer.token_to_id("<|im_end|>"),
        ),
        scale_factor=2,
        image_token_id=tokenizer.token_to_id("<image>"),
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=IMAGE_TOKENS, **SMOLVLM_TOKENS
    ).save_pretrained(folder)
    SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 28}).save_pretrained(folder)
    return folder


def save_idefics3(folder: Path) -> Path:
    """As SmolVLM, with Llama 3's tokens, a start of text that its tokenizer puts before everything, and a template."""
    extra = [*IMAGE_TOKENS, "<end_of_utterance>"]
    chat = chat_template("<|begin_of_text|>", "User:", "<image>", "<end_of_utterance>\n", "Assistant:")
    tokenizer = save_tokenizer(folder, IDEFICS3_TOKENS, extra, chat, first="<|begin_of_text|>")
    config = Idefics3Config(
        vision_config={**VISION_SIZES, "image_size": 28, "patch_size": 7},
        text_config=LlamaConfig(**TEXT_SIZES, **token_ids(tokenizer)),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    edges = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}}
    return save(folder, Idefics3ForConditionalGeneration, config, Idefics3ImageProcessorPil(**edges))


def save_paligemma(folder: Path) -> Path:
    """SigLIP before a Gemma; images and words see each other both ways, and there is no chat template."""
    return _save_paligemma(folder, GemmaConfig, {})


def save_paligemma2(folder: Path, sliding_window: int = 64) -> Path:
    """The same before a Gemma 2, of which every second layer sees `sliding_window` tokens far."""
    return _save_paligemma(
        folder,
        Gemma2Config,
        {
            "query_pre_attn_scalar": 8,
            "sliding_window": sliding_window,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    )


def _save_paligemma(folder: Path, text: type[GemmaConfig] | type[Gemma2Config], fields: dict[str, Any]) -> Path:
    tokenizer = save_tokenizer(folder, GEMMA_TOKENS, ["<image>"], first="<bos>")
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION_SIZES, image_size=28, patch_size=14, vision_use_head=False),
        text_config=text(**TEXT_SIZES, **token_ids(tokenizer), head_dim=8, **fields),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_seq_length=4)
    return save(folder, PaliGemmaForConditionalGeneration, config, processor)


def save_gemma3(folder: Path, sliding_window: int = 64) -> Path:
    """SigLIP, averaged to a quarter, before a Gemma 3; three of its layers see `sliding_window` tokens far."""
    chat = chat_template(
        "<bos>", "<start_of_turn>user\n", "<start_of_image>", "<end_of_turn>\n", "<start_of_turn>model\n"
    )
    extra = ["<start_of_image>", "<image_soft_token>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = save_tokenizer(folder, GEMMA_TOKENS, extra, chat, first="<bos>")
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION_SIZES, image_size=28, patch_size=7, vision_use_head=False),
        text_config=Gemma3TextConfig(
            **TEXT_SIZES,
            **token_ids(tokenizer),
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=sliding_window,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        ),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    processor = Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, image_seq_length=4)
    return save(folder, Gemma3ForConditionalGeneration, config, processor)


def save_qwen2_5_vl(folder: Path) -> Path:
    """A ViT whose first layer sees in windows of 14 pixels, before a Qwen 2 with positions in three axes."""
    tokenizer = save_qwen_tokenizer(folder)
    vision = {"patch_size": 7, "out_hidden_size": 32, "window_size": 14, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        vision_config={**QWEN_VISION_SIZES, **vision},
        text_config={
            **TEXT_SIZES,
            **token_ids(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        **qwen_vision_ids(tokenizer),
    )
    return save(folder, Qwen2_5_VLForConditionalGeneration, config, qwen_image_processor())


def save_qwen3_vl(folder: Path) -> Path:
    """A ViT of which two layers are added behind the first two of a Qwen 3 with positions in three axes."""
    tokenizer = save_qwen_tokenizer(folder)
    vision = {"patch_size": 7, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        vision_config={**QWEN_VISION_SIZES, **vision},
        text_config={**TEXT_SIZES, **token_ids(tokenizer), "head_dim": 8, "rope_parameters": rope},
        **qwen_vision_ids(tokenizer),
    )
    return save(folder, Qwen3VLForConditionalGeneration, config, qwen_image_processor())


def save_internvl(folder: Path) -> Path:
    """InternViT, whose patches are shuffled into fewer and wider tokens, before a Qwen 2."""
    chat = chat_template("", "<|im_start|>user\n", "<IMG_CONTEXT>\n", "<|im_end|>\n", "<|im_start|>assistant\n")
    extra = ["<|im_start|>", "<img>", "<IMG_CONTEXT>", "</img>"]
    tokenizer = save_tokenizer(folder, QWEN_TOKENS, extra, chat)
    config = InternVLConfig(
        vision_config={**VISION_SIZES, "image_size": 28, "patch_size": 7},
        text_config=Qwen2Config(**TEXT_SIZES, **token_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    processor = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28})
    return save(folder, InternVLForConditionalGeneration, config, processor)


def save_llava(folder: Path) -> Path:
    """DINOv2 before a Llama, with SmolLM2's tokens: what the packaged weights are composed of."""
    chat = chat_template("", "<|im_start|>user\n", "<image>\n", "<|im_end|>\n", "<|im_start|>assistant\n")
    tokens = {**QWEN_TOKENS, "bos_token": "<|im_start|>"}
    tokenizer = save_tokenizer(folder, tokens, ["<image>"], chat)
    config = LlavaConfig(
        vision_config=Dinov2Config(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
        ),
        text_config=LlamaConfig(**TEXT_SIZES, **token_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    processor = BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    return save(folder, LlavaForConditionalGeneration, config, processor)


# --- what they have in common -----------------------------------------------------------------------------------------


def save(folder: Path, kind: type[PreTrainedModel], config: Any, image_processor: Any) -> Path:
    """A model of which every parameter has an effect, also those that start at zero, beside its image processor."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


def save_qwen_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    chat = chat_template("", "<|im_start|>user\n", image, "<|im_end|>\n", "<|im_start|>assistant\n")
    extra = ["<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
    return save_tokenizer(folder, QWEN_TOKENS, extra, chat)


def qwen_image_processor() -> Qwen2VLImageProcessorPil:
    """As on the Hub, for patches of 7 pixels: the size of an image follows its own, within bounds."""
    return Qwen2VLImageProcessorPil(
        patch_size=7, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 280 * 280}
    )


def qwen_vision_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def save_tokenizer(
    folder: Path,
    special: dict[str, str],
    extra: Sequence[str],
    chat: str | None = None,
    first: str | None = None,
) -> PreTrainedTokenizerFast:
    """A token a word. `first` is the token that it puts before every text unless it is asked not to."""
    own = word_tokenizer([*dict.fromkeys([*special.values(), *extra]), *MARKS, *WORDS], special["unk_token"])
    if first is not None:
        own.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, own.token_to_id(first))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, additional_special_tokens=list(extra), **special)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a language model's config says of its tokens."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def chat_template(start: str, user: str, image: str, end: str, answer: str) -> str:
    """`start`, then of every message `user`, an `image` for each of its images, its text and `end`; then `answer`."""
    start, user, image, end, answer = (f"{{{{ {json.dumps(part)} }}}}" for part in (start, user, image, end, answer))
    part = f"{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    message = f"{user}{{% for part in message.content %}}{part}{{% endfor %}}{end}"
    asked = f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    return f"{start}{{% for message in messages %}}{message}{{% endfor %}}{asked}"


def word_tokenizer(vocabulary: Sequence[str], unknown: str) -> Tokenizer:
    """A token a word, a run of line ends, or a run of other signs."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|\w+|[^\w\s]+"), behavior="removed", invert=True)
    return tokenizer
