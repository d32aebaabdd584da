"""How good generated images are: FID, KID, Inception Score, precision and recall, each with what it was made with.

real = features(splits.train, extractor)          # once, for every model
score = score_images(samples, real, extractor, settings={"sampler": "ddim", "steps": 50, "ema": True})
check_comparable([score, other])                  # raises unless only the model differs
"""

from redistill_lib.quality.comparison import QualityComparison, compare_quality
from redistill_lib.quality.extractors import Extractor, Features, classifier_extractor, features, halves
from redistill_lib.quality.scores import Quality, check_comparable, floor, score_images

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
    "score_images",
]
