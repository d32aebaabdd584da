"""The network of published FIDs."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from redistill_lib.network import evaluating
from redistill_lib.quality.extractors import Extractor

URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


def inception_extractor(path: str | Path) -> Extractor:
    """Inception v3 with the weights of 2015-12-05, the extractor of published FIDs. Nothing is ever downloaded.

    `path` is the TorchScript file, which brings its own network and resizes to 299×299 as TensorFlow 1 did. With its
    2,048 features FID wants 10,000 images or more, and 16,384 for the limit.

    Raises FileNotFoundError where there is no file, with what to get; ValueError for one of another network.
    """
    fetch = f"fetch {URL} and pass its path, or score with a classifier of your own (classifier_extractor)"
    if not Path(path).is_file():
        raise FileNotFoundError(f"no Inception weights at {path}: {fetch}")
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # TorchScript is deprecated
            network = _Inception(torch.jit.load(str(path), map_location="cpu"))
        with evaluating(network):
            width = network(torch.zeros(2, 3, 299, 299))[0].shape[1]
    except (IndexError, RuntimeError, StopIteration) as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ValueError(f"{path} is no TorchScript of uint8 images 3×299×299 ({reason}): {fetch}") from None
    if width != 2048:
        raise ValueError(f"{path} gives {width} features, the Inception of FID 2048: {fetch}")
    return Extractor(network, "inception-v3-2015-12-05", num_features=width, channels=3)


class _Inception(nn.Module):
    """Images −1…1 → 2,048 features, and the logits without bias that the Inception Score is defined on."""

    resize = "299×299, by the network"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.network(images.add(1).mul(127.5).round().byte(), return_features=True)
        head = next(w for w in self.network.state_dict().values() if w.ndim == 2 and w.shape[1] == seen.shape[1])
        return seen, seen @ head.T
