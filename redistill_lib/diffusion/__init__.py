"""Denoisers: training and distilling them, drawing images with them."""

from redistill_lib.diffusion.images import image_grid, to_uint8
from redistill_lib.diffusion.noise import denoising_loss, make_schedule
from redistill_lib.diffusion.pretrained import load_pretrained, save_pretrained
from redistill_lib.diffusion.sampling import Trajectory, peak_of_sampling, sample, trajectory

__all__ = [
    "Trajectory",
    "denoising_loss",
    "image_grid",
    "load_pretrained",
    "make_schedule",
    "peak_of_sampling",
    "sample",
    "save_pretrained",
    "to_uint8",
    "trajectory",
]
