"""Networks that compute in fewer bits, as PyTorch runs them: what int8 or bfloat16 costs in accuracy."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional as F

from redistill_lib.data import DataSplits, to_float
from redistill_lib.export.formats import FORMATS, Inputs
from redistill_lib.export.quiet import quiet
from redistill_lib.memory import profile_memory
from redistill_lib.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd


def int8_model(model: nn.Module, calibration: Sequence[Inputs]) -> nn.Module:
    """A network of the same answers but for the rounding of int8: weights per channel, activations by static ranges.

    The ranges are those that it sees on `calibration`, calls on training images. It computes in float32 what integers
    would give; `profile_memory(model, …, dtype="int8")` says what they take. Quantised as for XNNPACK, by torchao and
    ExecuTorch, which have to be installed. Takes batches of any size. Raises ValueError for a network that cannot be
    followed.
    """
    FORMATS["executorch"].writer()
    if not calibration:
        raise ValueError("int8 needs calls on some images that the network was trained on, to find its ranges")
    two = tuple(torch.cat([x, x])[:2] for x in calibration[0])  # of one alone the size would be taken for fixed
    with torch.no_grad(), quiet():
        try:
            frozen = copy.deepcopy(model).cpu().eval().requires_grad_(False)
            program = torch.export.export(frozen, two, dynamic_shapes=tuple({0: Dim.DYNAMIC} for _ in two))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"this network cannot be followed ({type(error).__name__}: {reason})") from error
        return quantized(program.module(), calibration)


def quantized(graph: Any, calibration: Sequence[Inputs]) -> nn.Module:
    """A graph of `torch.export` that rounds to int8 what it computes."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(
        graph, XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    )
    for given in calibration:
        observed(*given)
    _hide_norms(observed.graph)
    made: nn.Module = allow_exported_model_train_eval(convert_pt2e(observed))  # `eval()` changes nothing of it
    return made


def _hide_norms(graph: fx.Graph) -> None:
    """Call norms that no convolution took by another name, for which torchao does not search through every pattern.

    They stay in float32 either way; the search, for what only training quantised has, takes 10 seconds.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        x, weight, bias, mean, variance, _, momentum, eps, *_ = node.args
        node.target, node.args = F.batch_norm, (x, mean, variance, weight, bias, False, momentum, eps)


class _Bfloat16(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).to(torch.bfloat16).eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        made: Tensor = self.model(*(x.bfloat16() if x.is_floating_point() else x for x in inputs))
        return made.float()


def bf16_model(model: nn.Module) -> nn.Module:
    """A copy in eval mode that holds and computes in bfloat16, from float32 inputs to float32 outputs.

    >>> x = torch.rand(1, 3, 8, 8)
    >>> net = nn.Conv2d(3, 4, 3)
    >>> torch.allclose(bf16_model(net)(x), net(x), atol=0.02), bf16_model(net)(x).dtype
    (True, torch.float32)
    """
    return _Bfloat16(model)


DTYPES: dict[str, Callable[[nn.Module, Sequence[Inputs]], nn.Module]] = {
    "fp32": lambda model, calibration: model.eval(),
    "bf16": lambda model, calibration: bf16_model(model),
    "int8": int8_model,
}


def precisions(
    networks: Mapping[str, Sequence[nn.Module]],
    data: DataSplits,
    *,
    dtypes: Sequence[str] = ("fp32", "bf16", "int8"),
    calibration: int = 200,
) -> pd.DataFrame:
    """Classifiers in several dtypes: one row per network, seed and dtype.

    `networks` are lists by name, one network for each seed. Columns are ``network``, ``seed``, ``dtype``,
    ``peak_bytes`` (one image, `fused`), ``weight_bytes`` and ``accuracy``, in % of all test images. The ranges of
    int8 are those on the first `calibration` training images.
    """
    import pandas as pd

    images, labels = data.test.head(len(data.test))
    training, rows = [(x,) for x in to_float(data.train.head(calibration)[0]).split(50)], []
    with progress_bar(sum(map(len, networks.values())) * len(dtypes), "networks in each dtype") as bar:
        for name, seeds in networks.items():
            for (seed, network), dtype in itertools.product(enumerate(seeds), dtypes):
                model = DTYPES[dtype](network, training)
                with torch.no_grad():
                    answers = torch.cat([model(to_float(part)).argmax(1) for part in images.split(256)])
                profile = profile_memory(network, to_float(images[:1]), dtype=dtype)
                row = {"network": name, "seed": seed, "dtype": dtype, "peak_bytes": profile.peak_bytes}
                right = 100 * float((answers == labels).float().mean())
                rows.append(row | {"weight_bytes": profile.weight_bytes, "accuracy": right})
                bar.update()
    return pd.DataFrame(rows)
