"""Denoisers: what they are asked, drawing images with them, keeping them in diffusers' format."""

from redistill_lib.diffusion.images import image_grid, to_uint8
from redistill_lib.diffusion.noise import DiffusionProcess, denoising_loss
from redistill_lib.diffusion.pretrained import load_pretrained, save_pretrained
from redistill_lib.diffusion.sampling import Sampling, Trajectory, peak_of_sampling, sample, trajectory

__all__ = [
    "DiffusionProcess",
    "Sampling",
    "Trajectory",
    "denoising_loss",
    "image_grid",
    "load_pretrained",
    "peak_of_sampling",
    "sample",
    "save_pretrained",
    "to_uint8",
    "trajectory",
]
