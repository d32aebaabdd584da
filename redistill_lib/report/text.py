"""Values as a reader of a page sees them."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd


def pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"<code>{text(name)}={text(value)}</code>" for name, value in values.items())


def text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def table(frame: pd.DataFrame, escape: bool = True) -> str:
    with pd.option_context("display.max_colwidth", None, "display.float_format", "{:.4g}".format):
        return str(frame.to_html(index=False, escape=escape, border=0, justify="left"))


def figure(figure: Mapping[str, Any], kind: str = "") -> str:
    """A place where the page's script draws a plotly figure."""
    data = json.dumps(figure).replace("<", "\\u003c")  # nothing in it may end the script
    return f'<div class="figure {kind}"><script type="application/json">{data}</script></div>'
