"""Values as a reader of a page sees them."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from redistill_lib.checks import is_number
from redistill_lib.store.tables import column_texts


def pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"<code>{text(name)}={text(value)}</code>" for name, value in values.items())


def text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def table(frame: pd.DataFrame, escape: bool = True) -> str:
    """Numbers of a column alike, with a true minus sign."""
    texts = {
        name: [f"−{told[1:]}" if is_number(value) and told.startswith("-") else told for value, told in column]
        for name, column in ((name, zip(frame[name], column_texts(frame[name]), strict=True)) for name in frame)
    }
    with pd.option_context("display.max_colwidth", None):
        shown = pd.DataFrame(texts, dtype=str).to_html(index=False, escape=escape, border=0, justify="left")
    return f"<div class=wide>{shown}</div>"


def figure(figure: Mapping[str, Any], kind: str = "") -> str:
    """A place where the page's script draws a plotly figure."""
    data = json.dumps(figure).replace("<", "\\u003c")  # nothing in it may end the script
    return f'<div class="figure {kind}"><script type="application/json">{data}</script></div>'
