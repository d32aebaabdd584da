"""Training: recipes, the loop, and what is trained with it."""

from redistill_lib.train.classify import distill_classifier, train_classifier
from redistill_lib.train.evaluate import evaluate
from redistill_lib.train.recipe import STL10, Recipe

__all__ = ["STL10", "Recipe", "distill_classifier", "evaluate", "train_classifier"]
