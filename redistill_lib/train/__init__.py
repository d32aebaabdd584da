"""Training: recipes, the loop, and what is trained with it."""

from redistill_lib.train.classify import distill_classifier, train_classifier
from redistill_lib.train.diffuse import distill_diffusion, train_diffusion
from redistill_lib.train.options import RunOptions
from redistill_lib.train.recipe import DDPM_CELEBA64, DDPM_CIFAR10, DIGITS_UNET, STL10, DiffusionRecipe, Recipe
from redistill_lib.train.tasks import evaluate

__all__ = [
    "DDPM_CELEBA64",
    "DDPM_CIFAR10",
    "DIGITS_UNET",
    "STL10",
    "DiffusionRecipe",
    "Recipe",
    "RunOptions",
    "distill_classifier",
    "distill_diffusion",
    "evaluate",
    "train_classifier",
    "train_diffusion",
]
