"""Models: bundled networks, torchvision, Hugging Face, and checkpoints."""

from optkit.models.huggingface import ImageClassifier, TextClassifier, huggingface
from optkit.models.resnet_cifar import ResNetCIFAR
from optkit.models.small import MLP, SmallCNN
from optkit.models.spec import ModelSpec
from optkit.models.torchvision import torchvision
from optkit.models.weights import load_weights

__all__ = [
    "MLP",
    "ImageClassifier",
    "ModelSpec",
    "ResNetCIFAR",
    "SmallCNN",
    "TextClassifier",
    "huggingface",
    "load_weights",
    "torchvision",
]
