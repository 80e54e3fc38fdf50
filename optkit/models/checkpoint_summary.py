"""A checkpoint in a few words: the number of tensors, the first names, and the network that has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

SHOWN = 3
# by the first pattern that a name matches
NETWORKS = (
    (r"lora_[AB]\b", "LoRA adapters, not a whole model"),
    (r"(^|\.)patch_embed\.proj\.|\bblocks\.0\.attn\.qkv\.", "a ViT of timm"),
    (r"encoder\.layers\.encoder_layer_0\.", "a ViT of torchvision"),
    (r"relative_position_bias_table", "a Swin transformer"),
    (r"\bh\.0\.attn\.c_attn\.", "GPT-2"),
    (r"\blayers\.0\.self_attn\.q_proj\.", "a decoder such as Llama"),
    (r"\btransformer\.layer\.0\.attention\.q_lin\.", "DistilBERT"),
    (r"\bencoder\.layer\.0\.attention\.self\.query\.", "BERT or ViT of Hugging Face"),
    (r"\bfeatures\.denseblock1\.", "DenseNet of torchvision"),
    (r"\bfeatures\.\d+\.\d+\.layer_scale", "ConvNeXt of torchvision"),
    (r"\bfeatures\.\d+\.\d+\.block\.", "EfficientNet or MobileNetV3 of torchvision"),
    (r"\bfeatures\.\d+\.conv\.\d+\.", "MobileNetV2 of torchvision"),
    (r"\bexp_avg(_sq)?$|\bmomentum_buffer$", "an optimizer's state"),
)
BLOCK = re.compile(r"\blayer(\d)\.(\d+)\.conv(\d)\.weight$")
RESNETS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 2, 2), 2): "ResNet-18",
    ((3, 4, 6, 3), 2): "ResNet-34",
    ((3, 4, 6, 3), 3): "ResNet-50",
    ((3, 4, 23, 3), 3): "ResNet-101",
    ((3, 8, 36, 3), 3): "ResNet-152",
}


def summary(tensors: Mapping[str, Tensor]) -> str:
    """The number of tensors, the first of them, and the network whose names these are, if it is a known one."""
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
    network = guess(tensors)
    count = f"{len(tensors)} tensor{'s' * (len(tensors) > 1)}"
    return f"{count} ({listed(shown)})" + (f", as {network} has them" if network else "")


def guess(tensors: Mapping[str, Tensor]) -> str | None:
    """The network whose tensors have such names."""
    if resnet := _resnet(tensors):
        return resnet
    return next((words for pattern, words in NETWORKS if any(re.search(pattern, name) for name in tensors)), None)


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _resnet(tensors: Mapping[str, Tensor]) -> str | None:
    found = [tuple(map(int, match.groups())) for match in map(BLOCK.search, tensors) if match]
    if not found:
        return None
    blocks = tuple(1 + max(block for group, block, _ in found if group == g) for g in sorted({g for g, *_ in found}))
    convolutions = max(conv for *_, conv in found)
    if len(blocks) == 3 and len(set(blocks)) == 1 and convolutions == 2:
        return f"ResNet-{6 * blocks[0] + 2} for CIFAR"
    return RESNETS.get((blocks, convolutions), "a ResNet")
