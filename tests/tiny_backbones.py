"""Folders of backbones small enough to be run hundreds of times: the real classes of transformers, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    Dinov2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

WORDS = ["open", "close", "the", "drawer", "door", "press", "button", "pick", "up", "red", "block", "now"]
BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SMOLVLM_TOKENS = {"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
IMAGE_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>"]


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
    sizes = {"num_attention_heads": 4, "intermediate_size": 48}
    config = SmolVLMConfig(
        vision_config={"hidden_size": 16, "num_hidden_layers": 2, "image_size": 28, "patch_size": 7, **sizes},
        text_config=LlamaConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_key_value_heads=2,
            vocab_size=tokenizer.get_vocab_size(),
            bos_token_id=tokenizer.token_to_id("<|im_start|>"),
            eos_token_id=tokenizer.token_to_id("<|im_end|>"),
            pad_token_id=tokenizer.token_to_id("<|im_end|>"),
            initializer_range=0.2,  # wide enough that a token's neighbours matter to it
            **sizes,
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


def word_tokenizer(vocabulary: list[str], unknown: str) -> Tokenizer:
    """A token a word."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
