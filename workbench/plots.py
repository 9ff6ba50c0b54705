"""Any result as a plotly figure, through its named axes; knows no method.

Signed values get a diverging scale whose middle is zero; layers grow upward; what is undefined
stays blank. Labels are text, never markup: plotly would read tags in a token as HTML.
"""

import html
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.result import Axis, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, ORANGE = "#3272b4", "#a6571f"
DIVERGING = [
    [0.0, "#7a3800"],
    [0.25, "#c1835d"],
    [0.5, "#ffffff"],
    [0.75, "#6897cc"],
    [1.0, "#004d8f"],
]
SEQUENTIAL = [[0.0, "#ecf4ff"], [0.5, "#308ade"], [1.0, "#093c62"]]
MAX_TICKS = 32


def figure(result: Result, *, values: str | None = None, title: str = "") -> "go.Figure":
    """Bars for one axis, a heat map for two; `values` names another of the result's tensors.

    The result's checks stand beneath the figure.

    Raises:
        OptionError: If the result has no such values, or they have other than one or two axes.
    """
    named = dict(result.values())
    name = next(iter(named)) if values is None else values
    if name not in named:
        raise OptionError("values", f"one of {', '.join(named)}", values)
    tensor, axes = named[name].detach().float().cpu(), result.axes
    if tensor.shape != tuple(len(axis.labels) for axis in axes) or len(axes) not in (1, 2):
        shape = ", ".join(f"{axis.name} {len(axis.labels)}" for axis in axes)
        raise OptionError("values", f"on one or two axes ({shape})", tuple(tensor.shape))
    drawn = _bars(tensor, axes[0]) if len(axes) == 1 else _heat(tensor, axes, result.unit)
    checks = " · ".join(f"{c.name} {c.value:.3g} {c.unit}".strip() for c in result.checks)
    drawn.update_layout(
        title=html.escape(title or name),
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 50, "b": 90},
    )
    drawn.add_annotation(
        text=html.escape(checks), xref="paper", yref="paper", x=0, y=-0.22, showarrow=False
    )
    if len(axes) == 1:
        drawn.update_yaxes(title=html.escape(f"{name} ({result.unit})"))
    return drawn


def _bars(values: Tensor, axis: Axis) -> "go.Figure":
    import plotly.graph_objects as go

    colours = [ORANGE if value < 0 else BLUE for value in values.tolist()]
    bars = go.Bar(y=values.tolist(), marker_color=colours, customdata=_texts(axis.labels))
    bars.hovertemplate = "%{customdata}: %{y:.4g}<extra></extra>"
    drawn = go.Figure(bars)
    drawn.update_xaxes(title=html.escape(axis.name), **_ticks(axis.labels))
    return drawn


def _heat(values: Tensor, axes: tuple[Axis, ...], unit: str) -> "go.Figure":
    """Layers (and sites) grow upward, everything else rightward."""
    import plotly.graph_objects as go

    up, right = axes
    if right.name in ("layer", "site"):
        values, (up, right) = values.T, (right, up)
    finite = values[torch.isfinite(values)]
    most = float(finite.abs().max()) if len(finite) else 1.0
    signed = bool((finite < 0).any())
    drawn = go.Figure(
        go.Heatmap(
            z=[[None if v != v else v for v in row] for row in values.tolist()],
            zmin=-most if signed else 0.0,
            zmax=most or 1.0,
            colorscale=DIVERGING if signed else SEQUENTIAL,
            colorbar={"title": html.escape(unit)},
            hovertemplate="%{y}, %{x}: %{z:.4g}<extra></extra>",
        )
    )
    drawn.update_xaxes(title=html.escape(right.name), **_ticks(right.labels))
    drawn.update_yaxes(title=html.escape(up.name), **_ticks(up.labels))
    return drawn


def _ticks(labels: tuple[str, ...]) -> dict[str, Any]:
    """Places by number: two tokens of the same text are two places."""
    step = -(-len(labels) // MAX_TICKS)
    places = list(range(0, len(labels), step))
    return {"tickvals": places, "ticktext": _texts([labels[i] for i in places])}


def _texts(labels: "tuple[str, ...] | list[str]") -> list[str]:
    return [html.escape(label) for label in labels]
