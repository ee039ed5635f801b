"""Fixtures of several test files: a backbone small enough to be run hundreds of times."""

from __future__ import annotations

from pathlib import Path

import pytest

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "open", "close", "the", "drawer", "door", "press", "button", "pick", "up", "red", "block", "now"]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random vision-text dual encoder: 28 px images, 16 patches, widths 16 (vision) and 24 (text)."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        Dinov2Config,
        PreTrainedTokenizerFast,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    folder = tmp_path_factory.mktemp("tiny_backbone")
    vision = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    text = BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=len(WORDS)
    )
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=8)
    VisionTextDualEncoderModel(config=config).save_pretrained(folder)

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture
def bodies() -> list:
    """Two robots, of 4 + 3 and 7 + 5 dims, with statistics and a camera each."""
    import numpy as np

    from priorvla.configuration.embodiment import Embodiment

    random = np.random.default_rng(0)
    return [
        Embodiment(
            name=name,
            action_names=[f"a{i}" for i in range(action_dim)],
            state_names=[f"s{i}" for i in range(state_dim)],
            control_rate=10.0,
            cameras=["front"],
        ).with_statistics(random.normal(size=(50, state_dim)), random.normal(size=(50, action_dim)))
        for name, action_dim, state_dim in (("small", 4, 3), ("large", 7, 5))
    ]
