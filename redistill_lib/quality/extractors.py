"""The network through whose eyes images are compared; every score carries its name and a hash of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.data.augment import to_float
from redistill_lib.identity import network_identity
from redistill_lib.network import MapRef, dtype_of, evaluating, reading

SCRIPT_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


def by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


class Extractor(nn.Module):
    """uint8 images B×C×H×W → (features B×num_features, logits B×classes or None).

    `network` is called with float images −1…1 of `channels` channels and the dtype of its weights. It returns such a
    pair, or features alone. `accuracy` (0…1) is a classifier's on its own test split. A network that resizes images
    says how in an attribute `resize`, a text.

    >>> eye = Extractor(nn.Flatten(), "pixels", num_features=16, channels=1)
    >>> seen, logits = eye(torch.zeros(5, 1, 4, 4, dtype=torch.uint8))
    >>> tuple(seen.shape), logits, eye.settings["extractor"]
    ((5, 16), None, 'pixels')
    """

    def __init__(
        self, network: nn.Module, name: str, *, num_features: int, channels: int, accuracy: float | None = None
    ) -> None:
        super().__init__()
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise ValueError(f"the accuracy of {name} is {accuracy}; it is a fraction between 0 and 1")
        self.network, self.name, self.accuracy = network, name, accuracy
        self.num_features, self.channels = num_features, channels

    @property
    def weights(self) -> str:
        """A hash of the network as it is at this moment: whoever built it may train it on."""
        return network_identity(self.network)["weights"]

    @property
    def settings(self) -> dict[str, Any]:
        """What a score has to say about the network it is made with."""
        return {
            "extractor": self.name,
            "extractor_weights": self.weights,
            "extractor_accuracy": self.accuracy,
            "num_features": self.num_features,
            "resize": getattr(self.network, "resize", "none"),
        }

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != self.channels:
            raise ValueError(f"{self.name} takes {self.channels}-channel images, these have {images.shape[1]}")
        found = self.network(to_float(images).to(dtype_of(self.network)))
        seen, logits = found if isinstance(found, tuple) else (found, None)
        wanted = (len(images), self.num_features)
        if seen.shape != wanted:
            raise ValueError(f"{self.name} gives features of shape {by(seen.shape)}, not {by(wanted)}")
        return seen, logits


def check_extractor(extractor: object) -> None:
    if not isinstance(extractor, Extractor):
        raise TypeError(
            f"a {type(extractor).__name__} is no extractor; classifier_extractor makes one of a classifier"
        )


def classifier_extractor(model: nn.Module, name: str, accuracy: float | None) -> Extractor:
    """A trained classifier as an extractor: features are what its last linear layer reads, logits what it gives.

    `model` is what `load_model(run)` returns, `name` the run's id and `accuracy` its test accuracy (0…1, None if
    unknown): all scores made with it carry both. It should be trained on the data that the generator imitates; its
    FID is on a scale of its own.

    Raises ValueError for a network without a convolution or whose output is not that of a linear layer.

    >>> from redistill_lib.models import create_model
    >>> classifier_extractor(create_model("resnet18", in_channels=1, width=0.125), "teacher-1a2b", 0.97).num_features
    64
    """
    linears = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if not linears or convolution is None:
        raise ValueError(
            f"{name} is a {type(model).__name__} without a {'convolution' if linears else 'linear layer'}, no image "
            "classifier; build an Extractor of it"
        )
    path, linear = linears[-1]
    sizes = {"num_features": linear.in_features, "channels": convolution.in_channels}
    return Extractor(_Penultimate(model, path, name), name, **sizes, accuracy=accuracy)


class _Penultimate(nn.Module):
    """A classifier that also returns what its last linear layer reads."""

    def __init__(self, model: nn.Module, path: str, name: str) -> None:
        super().__init__()
        self.model, self.path, self.name = model, path, name

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        read: list[Tensor] = []
        made: list[Tensor] = []
        visits = {MapRef(self.path, "input"): read.append, MapRef(self.path, "output"): made.append}
        with reading(self.model, visits):
            logits = self.model(images)
        if len(made) != 1 or made[0] is not logits:
            raise ValueError(f"{self.name}: the output is not that of its last linear layer, {self.path or 'itself'}")
        return read[0], logits


def inception_extractor(path: str | Path) -> Extractor:
    """Inception v3 with the weights of 2015-12-05, the extractor of published FIDs. Nothing is ever downloaded.

    `path` is the TorchScript file, which brings its own network and resizes to 299×299 as TensorFlow 1 did. With its
    2,048 features FID wants 10,000 images or more, and 16,384 for the limit.

    Raises FileNotFoundError where there is no file, with what to get; ValueError for one of another network.
    """
    fetch = f"fetch {SCRIPT_URL} and pass its path, or score with a classifier of your own (classifier_extractor)"
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
