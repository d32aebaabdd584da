"""What networks need in runtimes, predicted and measured."""

from __future__ import annotations

import plotly.graph_objects as go

from redistill_lib.export.deployment import Deployment
from redistill_lib.figures.memory import unit_of
from redistill_lib.figures.theme import INK, colors, finish, muted, name_rows
from redistill_lib.results import capital, label
from redistill_lib.sizes import format_size


def deployment(found: Deployment) -> go.Figure:
    """For each runtime the memory that a pass of each network needs, as a bar, and what was predicted, as a mark.

    Give the rows of one dtype, `found.of("int8")`.
    """
    if not found.rows:
        raise ValueError("nothing was deployed: " + ("; ".join(found.refused) or "there are no rows"))
    tones = colors(dict.fromkeys(row.role for row in found.rows))
    unit, scale = unit_of(max(row.needs.needed_bytes for row in found.rows))
    figure, names, seen = go.Figure(), list[str](), set[str]()
    predicted: dict[int, float] = {}
    for k, row in enumerate(found.rows):
        needed = row.needs.needed_bytes
        figure.add_bar(
            x=[needed / scale], y=[k], orientation="h", width=0.7, name=label(row.role), legendgroup=row.role,
            showlegend=False, marker={"color": tones[row.role], "line": {"width": 0}}, cliponaxis=False,
            text=f" <b>{format_size(needed)}</b> {muted(f'{1000 * row.needs.seconds:.2g} ms')}",
            textposition="outside",
            hovertemplate=f"<b>{label(row.role)}</b> in {row.made.runtime}: %{{text}}<extra></extra>",
        )  # fmt: skip
        first = row.made.runtime not in seen
        seen.add(row.made.runtime)
        names.append((f"<b>{row.made.runtime}</b> · " if first else "") + label(row.role))
        if row.predicted_bytes is not None:
            predicted[k] = row.predicted_bytes / scale
    figure.add_scatter(
        x=[*predicted.values()], y=[*predicted], mode="markers", name="predicted from the network",
        marker={"symbol": "line-ns", "size": 20, "line": {"width": 2.5, "color": INK}}, hoverinfo="skip",
    )  # fmt: skip
    name_rows(figure, names)
    reach = max(row.needs.needed_bytes for row in found.rows) / scale
    figure.update_xaxes(title=f"memory that one pass needs ({unit})", range=[0, 1.3 * reach])
    dtype = found.rows[0].made.dtype
    note = f"One image, {dtype}; activations alone. Measured in each runtime in a process of its own, on one thread."
    return finish(
        figure, capital(found.headline()), note, plot=18 + 34 * len(names), margins=(230, 8, 24, 56), legend=True
    )
