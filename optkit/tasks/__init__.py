"""What a model is for: data, splits, loss, metric."""

from optkit.tasks.digits import Digits
from optkit.tasks.image_classification import ImageClassification
from optkit.tasks.image_files import HubImages, ImageFolder

__all__ = ["Digits", "HubImages", "ImageClassification", "ImageFolder"]
