"""Models: bundled networks, torchvision, Hugging Face, and checkpoints."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

# named as their modules, which would take their places here if they were imported later
from optkit.models.huggingface import huggingface
from optkit.models.torchvision import torchvision

if TYPE_CHECKING:
    from optkit.models.causal_lm import CausalLM
    from optkit.models.classifiers import ImageClassifier, TextClassifier
    from optkit.models.dense_detector import DenseDetector
    from optkit.models.language_models import language_model
    from optkit.models.resnet_cifar import ResNetCIFAR
    from optkit.models.small import MLP, SmallCNN
    from optkit.models.spec import ModelSpec
    from optkit.models.unet import UNet
    from optkit.models.weights import load_weights
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "MLP",
    "CausalLM",
    "DenseDetector",
    "ImageClassifier",
    "ModelSpec",
    "ResNetCIFAR",
    "SmallCNN",
    "TextClassifier",
    "UNet",
    "huggingface",
    "language_model",
    "load_weights",
    "torchvision",
]
