"""Asking a network, and what it says where it cannot take what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.network.hooks import evaluating, output_of


@contextmanager
def asking(inputs: Sequence[Any], role: str = "network", called: str = "") -> Iterator[None]:
    """While open, any error of a network that is called with `inputs` becomes a ValueError of one sentence.

    Errors that this library words itself, such as those of reading maps, pass as they are. `called` names the
    arguments, as "images, t"; left out, several are told by their shapes.

    >>> with asking((torch.zeros(1, 1, 8, 8),), "student"):
    ...     nn.Conv2d(3, 8, 3)(torch.zeros(1, 1, 8, 8))
    Traceback (most recent call last):
        ...
    ValueError: the student does not take images of 1×8×8: Given groups=1, weight of size [8, 3, 3, 3], expected ...
    """
    try:
        yield
    except Exception as error:  # a network of the user's can raise anything
        if _is_ours(error):
            raise
        first, *more = map(_described, inputs)
        told = called or ", ".join([first, *more]) * bool(more)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        suffix = f"; it is called as ({told})" if told else ""
        raise ValueError(f"the {role} does not take {first}: {reason}{suffix}") from error


def answer(
    model: nn.Module, inputs: tuple[Any, ...], role: str = "network", *, called: str = "", gradient: bool = False
) -> Tensor:
    """The main tensor (`output_of`) of what a network returns in eval mode, or a ValueError as by `asking`."""
    with evaluating(model), torch.set_grad_enabled(gradient), asking(inputs, role, called):
        outputs = model(*inputs)
    return output_of(outputs, f"the {role}")


def _is_ours(error: Exception) -> bool:
    """Whether it was raised by this library: not by its networks, nor by an operator that it watches."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_name in ("__torch_function__", "__torch_dispatch__"):
        return False
    raised_in = trace.tb_frame.f_globals.get("__name__", "")
    return raised_in.startswith("redistill_lib.") and not raised_in.startswith("redistill_lib.models")


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.dtype == torch.float32 else f"{value.dtype} ".removeprefix("torch.")
    if value.ndim == 4:
        return f"{kind}images of {'×'.join(map(str, value.shape[1:]))}"
    return f"{kind or 'float32 '}values of {'×'.join(map(str, value.shape)) or 'no axis'}"
