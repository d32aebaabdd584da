"""Denoisers: training and distilling them, drawing pictures with them."""

from redistill_lib.diffusion.denoise import denoising_loss, make_schedule
from redistill_lib.diffusion.pictures import picture_grid, to_uint8
from redistill_lib.diffusion.pretrained import load_pretrained, save_pretrained
from redistill_lib.diffusion.recipe import DDPM_CELEBA64, DDPM_CIFAR10, DIGITS_UNET, DiffusionRecipe
from redistill_lib.diffusion.sampling import Trajectory, peak_of_sampling, sample, trajectory
from redistill_lib.diffusion.training import distill_diffusion, train_diffusion

__all__ = [
    "DDPM_CELEBA64",
    "DDPM_CIFAR10",
    "DIGITS_UNET",
    "DiffusionRecipe",
    "Trajectory",
    "denoising_loss",
    "distill_diffusion",
    "load_pretrained",
    "make_schedule",
    "peak_of_sampling",
    "picture_grid",
    "sample",
    "save_pretrained",
    "to_uint8",
    "train_diffusion",
    "trajectory",
]
