"""Where models come from: bundled networks, torchvision, a checkpoint."""

from optkit.models.resnet_cifar import ResNetCIFAR
from optkit.models.small import MLP, SmallCNN
from optkit.models.spec import ModelSpec, load_weights
from optkit.models.torchvision import torchvision

__all__ = ["MLP", "ModelSpec", "ResNetCIFAR", "SmallCNN", "load_weights", "torchvision"]
