"""Tasks: data, splits, loss and metric."""

from optkit.tasks.digits import Digits
from optkit.tasks.docstrings import Docstrings
from optkit.tasks.image_classification import ImageClassification
from optkit.tasks.image_files import HubImages, ImageFolder
from optkit.tasks.text_classification import TextClassification
from optkit.tasks.text_files import TextFiles

__all__ = [
    "Digits",
    "Docstrings",
    "HubImages",
    "ImageClassification",
    "ImageFolder",
    "TextClassification",
    "TextFiles",
]
