"""Tasks: data, splits, loss and metric."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.tasks.columns import ColumnsTask, hf_dataset
    from optkit.tasks.contrastive import supervised_contrastive_loss
    from optkit.tasks.dense_detection import dense_detection_loss, detections
    from optkit.tasks.detection import Detection
    from optkit.tasks.digits import Digits
    from optkit.tasks.docstrings import Docstrings
    from optkit.tasks.image_classification import ImageClassification
    from optkit.tasks.image_files import HubImages, ImageFolder
    from optkit.tasks.language.docstrings import DocstringsLM
    from optkit.tasks.language.files import Language
    from optkit.tasks.language.multiple_choice import MultipleChoice
    from optkit.tasks.loader import LoaderTask
    from optkit.tasks.multilabel import Multilabel
    from optkit.tasks.regression import Regression
    from optkit.tasks.retrieval import Retrieval
    from optkit.tasks.segmentation import Segmentation
    from optkit.tasks.text_classification import TextClassification
    from optkit.tasks.text_files import TextFiles
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ColumnsTask",
    "Detection",
    "Digits",
    "Docstrings",
    "DocstringsLM",
    "HubImages",
    "ImageClassification",
    "ImageFolder",
    "Language",
    "LoaderTask",
    "MultipleChoice",
    "Multilabel",
    "Regression",
    "Retrieval",
    "Segmentation",
    "TextClassification",
    "TextFiles",
    "dense_detection_loss",
    "detections",
    "hf_dataset",
    "supervised_contrastive_loss",
]
