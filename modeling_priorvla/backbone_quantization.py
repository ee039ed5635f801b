"""A frozen backbone in less memory: its linear maps in 8-bit integers, with torchao."""

from __future__ import annotations

import warnings

from torch import nn

from ..configuration.backbone_reference import require_quantization
from .backbone_features import Backbone


def quantize_backbone(backbone: Backbone, kind: str | None) -> None:
    """Turns the weights of the linear maps that features come through into integers, in place; None does nothing.

    `int8` is symmetric, with one scale an output; activations, embeddings, convolutions and norms stay as they are.
    Such a map takes a quarter of what it takes in float32, half of bfloat16. A backbone that is being loaded is still
    on the CPU then: a GPU only gets the integers. The same weights and inputs give the same bits, but other features
    than the whole weights: those of Meta-World's pictures differ by 2 to 3 % of their norm (DINOv2-S/14, layers 3 to
    12), those of its instructions by 3 % (MiniLM-L6). In bfloat16 both differ by 1 %.

    Low-rank adapters can be trained beside such maps; the maps themselves cannot be, nor adapters merged into them.

    Raises:
        ValueError: on another kind. ImportError: when torchao is not installed.
    """
    require_quantization(kind)
    if kind is None:
        return
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ImportError(
            f"a backbone with quantization={kind!r} needs torchao: run pip install 'priorvla[quantization]', or load "
            "with backbone_quantization=None, which takes more memory and gives slightly other features"
        ) from error

    quantize_(
        backbone.model,
        Int8WeightOnlyConfig(set_inductor_config=False),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and not backbone.is_unused(name),
    )
    backbone.requires_grad_(False)
    backbone.quantization = kind
    # peft's, on every map: that adapters cannot be merged, which `merge_adapter` says when somebody wants to.
    warnings.filterwarnings("ignore", message=r"TorchaoLoraLinear was instantiated without `get_apply_tensor_subclass`")


__all__ = ["quantize_backbone"]
