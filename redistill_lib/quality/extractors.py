"""The network through whose eyes images are compared; every score carries its name and a hash of its weights."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import wholes
from redistill_lib.data.augment import to_float
from redistill_lib.network import Place, evaluating, tapping
from redistill_lib.network.dtypes import dtype_of

INCEPTION_FEATURES = 2048
FIDELITY_FILE = "weights-inception-2015-12-05-6726825d.pth"
SCRIPT_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
FIDELITY_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FIDELITY_FILE}"


class Extractor(nn.Module):
    """uint8 images B×C×H×W → (features B×num_features, logits B×classes or None).

    `network` is called with float images −1…1 of the dtype of its weights, or with uint8 ones where `uint8`, of
    `channels` channels; with `image_size`, a side or (height, width), they are first resized to that (bilinear,
    antialiased). It returns such a pair, or features alone. `accuracy` (0…1) is the network's on its own test split,
    where it is a classifier. A network that resizes by itself says so in an attribute `resize`, a text.

    >>> eye = Extractor(nn.Flatten(), "pixels", num_features=16, channels=1)
    >>> seen, logits = eye(torch.zeros(5, 1, 4, 4, dtype=torch.uint8))
    >>> tuple(seen.shape), logits, eye.settings["extractor"]
    ((5, 16), None, 'pixels')
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        num_features: int,
        channels: int,
        image_size: int | tuple[int, int] | None = None,
        uint8: bool = False,
        accuracy: float | None = None,
    ) -> None:
        super().__init__()
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise ValueError(f"the accuracy of {name} is {accuracy}; it is a fraction between 0 and 1")
        self.network, self.name = network, name
        self.num_features, self.channels = num_features, channels
        self.uint8, self.accuracy = uint8, accuracy
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.size = wholes("image_size", sides) if sides else None
        self.resize: str = getattr(network, "resize", "none")
        if self.size:
            self.resize = "×".join(map(str, self.size)) + ", bilinear, antialiased"

    @property
    def weights(self) -> str:
        """A hash of the network as it is at this moment: whoever built it may train it on."""
        return _hash(self.network)

    @property
    def input_range(self) -> str:
        return "0…255, uint8" if self.uint8 else "−1…1, " + str(dtype_of(self.network)).removeprefix("torch.")

    @property
    def settings(self) -> dict[str, Any]:
        """What a score has to say about the network it is made with."""
        return {
            "extractor": self.name,
            "extractor_weights": self.weights,
            "extractor_accuracy": self.accuracy,
            "num_features": self.num_features,
            "resize": self.resize,
        }

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != self.channels:
            raise ValueError(f"{self.name} takes {self.channels}-channel images, these have {images.shape[1]}")
        inputs = images if self.uint8 else to_float(images)
        if self.size and tuple(images.shape[-2:]) != self.size:
            inputs = F.interpolate(inputs.float(), self.size, mode="bilinear", antialias=True, align_corners=False)
            inputs = inputs.round().clamp(0, 255).byte() if self.uint8 else inputs
        found = self.network(inputs if self.uint8 else inputs.to(dtype_of(self.network)))
        seen, logits = found if isinstance(found, tuple) else (found, None)
        if seen.shape != (len(images), self.num_features):
            expected = f"{len(images)}×{self.num_features}"
            shape = "×".join(map(str, seen.shape))
            raise ValueError(f"{self.name} gives features of shape {shape}, not {expected}")
        return seen, logits

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.num_features} features, input {self.input_range}, resize: {self.resize}"


def check_extractor(extractor: object) -> None:
    if not isinstance(extractor, Extractor):
        kind = type(extractor).__name__
        raise TypeError(
            f"a {kind} is no extractor; of a classifier, classifier_extractor(model, name, accuracy) is one"
        )


def classifier_extractor(
    model: nn.Module, name: str, accuracy: float | None, *, image_size: int | tuple[int, int] | None = None
) -> Extractor:
    """A trained classifier as an extractor: features are what its last linear layer reads, logits what it gives.

    `model` is what `load_model(run)` returns, `name` the run's id and `accuracy` its test accuracy (0…1, None if
    unknown): all scores made with it carry both. It should be trained on the data that the generator imitates, to
    the full plan (the teacher); its FID is on a scale of its own. `image_size`: the side it was trained on, if the
    images to score have another.

    Raises ValueError for a network without a convolution or whose output is not that of a linear layer.

    >>> from redistill_lib.models import create_model
    >>> classifier_extractor(create_model("resnet18", in_channels=1, width=0.125), "teacher-1a2b", 0.97)
    Extractor(
      'teacher-1a2b', 64 features, input −1…1, float32, resize: none
      (network): ...
    """
    linears = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if not linears or convolution is None:
        raise ValueError(
            f"{name} is a {type(model).__name__} without a {'convolution' if linears else 'linear layer'}; "
            "a classifier_extractor wants an image classifier, for anything else build an Extractor"
        )
    path, linear = linears[-1]
    return Extractor(
        _Penultimate(model, path, name), name, num_features=linear.in_features,
        channels=convolution.in_channels, image_size=image_size, accuracy=accuracy,
    )  # fmt: skip


class _Penultimate(nn.Module):
    """A classifier that also returns what its last linear layer reads."""

    def __init__(self, model: nn.Module, path: str, name: str) -> None:
        super().__init__()
        self.model, self.path, self.name = model, path, name

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        read: list[Tensor] = []
        made: list[Tensor] = []
        places: dict[Place, Any] = {(self.path, "input"): read.append, (self.path, "output"): made.append}
        with tapping(self.model, places):
            logits = self.model(images)
        if len(made) != 1 or made[0] is not logits:
            raise ValueError(f"{self.name}: the output is not that of its last linear layer, {self.path or 'itself'}")
        return read[0], logits


def inception_extractor(path: str | Path | None = None) -> Extractor:
    """Inception v3 with the weights of 2015-12-05, the extractor of published FIDs. Nothing is ever downloaded.

    `path` is either a TorchScript file, which brings its own network, or a ``.pth`` or ``.safetensors`` file of
    torch-fidelity's weights, which needs that package. Without `path`, torch-fidelity's file is looked for where
    ``torch.hub`` keeps its downloads. The network resizes to 299×299 by itself, as TensorFlow 1 did. Give its
    FID over few images little trust: 2,048 features want 10,000 or more, and 16,384 for its limit N → ∞.

    Raises FileNotFoundError where there is no file and ImportError without torch-fidelity, both with what to get;
    ValueError for a file that does not give 2,048 features.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", FIDELITY_FILE) if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {file}: fetch {SCRIPT_URL} (TorchScript, needs no package) and pass its path, "
            f"or install torch-fidelity and fetch {FIDELITY_URL}; "
            "without either, classifier_extractor scores with a classifier of your own"
        )
    if _is_script(file):
        with warnings.catch_warnings():  # TorchScript is deprecated, and the form in which these weights are spread
            warnings.simplefilter("ignore", DeprecationWarning)
            network: nn.Module = torch.jit.load(str(file), map_location="cpu")
    else:
        network = _fidelity(file)
    wrapped = _Inception(network.eval())
    try:
        with evaluating(wrapped):
            shape = wrapped(torch.zeros(2, 3, 299, 299, dtype=torch.uint8))[0].shape
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{file} does not take uint8 images 3×299×299: {str(error).splitlines()[-1]}; fetch {SCRIPT_URL}"
        ) from None
    if shape != (2, INCEPTION_FEATURES):
        raise ValueError(
            f"{file} gives {shape[-1]} features, the Inception of FID {INCEPTION_FEATURES}; fetch {SCRIPT_URL}"
        )
    return Extractor(wrapped, "inception-v3-2015-12-05", num_features=INCEPTION_FEATURES, channels=3, uint8=True)


class _Inception(nn.Module):
    """uint8 images → 2,048 features, and the logits without bias that the Inception Score is defined on."""

    resize = "299×299, by the network"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        schema = getattr(network.forward, "schema", None)  # of TorchScript, whose default are probabilities
        names = {argument.name for argument in schema.arguments} if schema else set()
        self.flags = {"return_features": True} if "return_features" in names else {}
        heads = [w for w in network.state_dict().values() if w.ndim == 2 and w.shape[1] == INCEPTION_FEATURES]
        self.register_buffer("head", heads[0] if len(heads) == 1 else None, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        seen = self.network(images, **self.flags)
        head = self.get_buffer("head") if self._buffers["head"] is not None else None
        return seen, None if head is None or seen.shape[1] != len(head.T) else seen @ head.T


def _is_script(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _fidelity(file: Path) -> nn.Module:
    """torch-fidelity's Inception with the weights of that file."""
    if find_spec("torch_fidelity") is None:
        raise ImportError(
            f"{file} holds weights without their network, which the package torch-fidelity has: pip install "
            f"torch-fidelity, or fetch {SCRIPT_URL} (TorchScript, needs no package) and pass its path"
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            torch.save(load_file(file), Path(folder, "weights.pth"))
            file = Path(folder, "weights.pth")
        network = NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], str(file))
    network.use_antialias = False  # as TensorFlow 1 resized; newer versions of torchmetrics would smooth
    return network


def _hash(network: nn.Module) -> str:
    """Eight hex digits over every tensor's name and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]
