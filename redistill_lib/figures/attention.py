"""Where vision transformers look: at the image, and how far."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from redistill_lib.attention import AttentionMaps
from redistill_lib.figures.samples import Panel, image_trace, panels
from redistill_lib.figures.theme import MUTED, NBSP, finish, muted, role_trace
from redistill_lib.results import label, listed, number


def attention_maps(attention: Mapping[str, AttentionMaps], *, block: int | None = None) -> go.Figure:
    """The images, and where the class token of each network looks in one of its blocks: the last, unless given.

    `attention` (what `redistill_lib.attention.read_attention` returns, all of the same images) by role. Colours say
    how much a patch is looked at compared with even attention, on one scale for all that ends at their 99th
    percentile; the title, how much the one that is looked at most. Raises ValueError where images differ or a network
    lacks the block.

    >>> maps = np.full((1, 1, 2, 2), 0.2, np.float32)
    >>> one = AttentionMaps(np.zeros((1, 1, 8, 8), np.uint8), (5,), maps, np.ones((1, 1, 2), np.float32))
    >>> len(attention_maps({"student": one, "red": one}).data)
    3
    """
    first = _checked(attention)
    block = first.blocks[-1] if block is None else block
    if lacking := [role for role, its in attention.items() if block not in its.blocks]:
        known = listed(map(str, attention[lacking[0]].blocks))
        raise ValueError(f"block {block} of {lacking[0]} was not looked into; there are {known}")
    places = {role: its.blocks.index(block) for role, its in attention.items()}
    shares = {role: its.maps[:, places[role]] * its.maps[0, 0].size for role, its in attention.items()}
    every = np.concatenate([share.ravel() for share in shares.values()])
    top, highest = float(np.percentile(every, 99)), float(every.max())  # one patch would darken all others
    extent, rows = first.images.shape[2:], []
    for k, image in enumerate(first.images):
        row: list[Panel] = [(image_trace(image, "the image"), "" if k else "<b>image</b>", "")]
        for role, share in shares.items():
            height, width = share.shape[1:]
            head = f"<b>{label(role)}</b><br>{muted(f'{height}×{width} patches')}"
            row.append((_heatmap(share[k], extent, label(role)), "" if k else head, ""))
        rows.append(row)
    told = listed(f"{number(float(x.max((1, 2)).mean()), 1)}×{NBSP}({label(role)})" for role, x in shares.items())
    last = ", the last," if all(its.depth == block + 1 for its in attention.values()) else ""
    title = f"In block {block}{last} the most-watched patch gets {told} its even share"
    note = "Attention of the class token, mean over heads; colour: 1 is an even share. Title: mean over these images."
    if capped := round(top, 1) < round(highest, 1):
        note += f" The colours end where 1 patch in 100 is above; the highest has {number(highest, 1)}."
    figure = panels(rows, extent, title, note, right=76)
    ticks = {0.0: "0", 1.0: "1", round(top, 1): "≥ " * capped + number(top, 1)}
    bar = {
        "thickness": 10,
        "x": figure.layout.xaxis.domain[1] + 0.01,
        "tickvals": [*ticks],
        "ticktext": [*ticks.values()],
    }
    return figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": top, "colorbar": bar})


def _heatmap(share: np.ndarray, extent: tuple[int, ...], name: str) -> go.Heatmap:
    dy, dx = extent[0] / share.shape[0], extent[1] / share.shape[1]
    hover = f"<b>{name}</b><br>%{{z:.2f}} × even attention<extra></extra>"
    place = {"x0": dx / 2, "dx": dx, "y0": dy / 2, "dy": dy}
    return go.Heatmap(z=share.round(2), coloraxis="coloraxis", hovertemplate=hover, **place)


def attention_reach(attention: Mapping[str, AttentionMaps]) -> go.Figure:
    """How far patches look, block by block: a line for the mean of each network, faint dots for its heads.

    `attention` by role, as for `attention_maps`. A convolution's reach is a pixel or two in its first layers; a
    transformer may look anywhere from the start.

    >>> maps = np.full((1, 1, 2, 2), 0.2, np.float32)
    >>> one = AttentionMaps(np.zeros((1, 1, 8, 8), np.uint8), (0,), maps, np.ones((1, 1, 2), np.float32))
    >>> from redistill_lib.figures import headline
    >>> headline(attention_reach({"student": one}))
    'In block 0 patches look 1.0 px (naive student) far'
    """
    first, figure = _checked(attention), go.Figure()
    for role, its in attention.items():
        frame = its.to_frame()
        means = frame.groupby("block")["reach"].mean()
        heads = {"x": frame["block"], "y": frame["reach"], "mode": "markers", "marker_size": 7, "opacity": 0.35}
        figure.add_trace(role_trace(role, ", one head: %{y:.1f} px", **heads, showlegend=False))
        figure.add_trace(role_trace(role, ", block %{x}: %{y:.1f} px", x=means.index, y=means, mode="lines+markers"))
    even = _even(first)
    figure.add_hline(even, line={"color": MUTED, "width": 1.5, "dash": "dash"}, annotation_text="even attention")
    figure.update_xaxes(title="block", dtick=1)
    figure.update_yaxes(title="mean distance to what a patch looks at (px)", rangemode="tozero")
    start, ends = first.blocks[0], {role: float(its.reach[:, 0].mean()) for role, its in attention.items()}
    told = listed(f"{number(value, 1)}{NBSP}px ({label(role)})" for role, value in ends.items())
    note = f"Mean over {len(first.images)} images. Faint dots: single heads. Patches of {first.patch} px."
    return finish(figure, f"In block {start} patches look {told} far", note, plot=280, legend=True)


def _even(attention: AttentionMaps) -> float:
    """The reach of a patch that looks at all patches alike."""
    height, width = attention.maps.shape[-2:]
    y, x = np.divmod(np.arange(height * width), width)
    return float(attention.patch * np.hypot(y[:, None] - y, x[:, None] - x).mean())


def _checked(attention: Mapping[str, AttentionMaps]) -> AttentionMaps:
    if not attention:
        raise ValueError("there is no attention to show")
    first = next(iter(attention.values()))
    for role, its in attention.items():
        if not np.array_equal(its.images, first.images):
            raise ValueError(f"the attention of {role} is to other images; give all networks the same")
    return first
