"""How good generated images are: FID, KID, Inception Score, precision and recall, each with what it was made with."""

from redistill_lib.quality.extractors import Extractor, Features, classifier_extractor, features, halves
from redistill_lib.quality.inception import inception_extractor
from redistill_lib.quality.scores import (
    Quality,
    QualityComparison,
    check_comparable,
    compare_quality,
    floor,
    score_images,
)

__all__ = [
    "Extractor",
    "Features",
    "Quality",
    "QualityComparison",
    "check_comparable",
    "classifier_extractor",
    "compare_quality",
    "features",
    "floor",
    "halves",
    "inception_extractor",
    "score_images",
]
