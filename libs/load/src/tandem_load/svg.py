"""Line charts as SVG text: axes, a grid, a legend, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 46
# Okabe and Ito's colours, which most colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LEGEND_ROW = 16
_MOST_DOTS = 12  # of a line whose points can be told apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Lines over one pair of axes; `log_y` leaves out what is not positive."""

    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    log_y: bool = False


def render(chart: Chart) -> str:
    """An <svg> element; a chart without points says so."""
    lines = [
        (series.name, [(x, y) for x, y in series.points if y > 0 or not chart.log_y])
        for series in chart.series
    ]
    points = [point for _, line in lines for point in line]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f'<g font-family="sans-serif" font-size="11"><title>{escape(chart.title)}</title>',
        f'<text x="{_WIDTH / 2}" y="16" text-anchor="middle" font-size="14">{escape(chart.title)}</text>',
    ]
    if not points:
        parts.append(
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no data</text></g></svg>'
        )
        return "\n".join(parts)
    x_axis = _Axis.linear([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    y_values = [y for _, y in points]
    make = _Axis.logarithmic if chart.log_y else _Axis.linear
    y_axis = make(y_values, _HEIGHT - _BOTTOM, _TOP)
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{_number(tick)}</text>'
        )
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
        f"{escape(chart.x_title)}</text>"
    )
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(chart.y_title)}</text>"
    )
    for number, (name, line) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(line) <= _MOST_DOTS:
            parts += [
                f'<circle cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="3" fill="{colour}">'
                f"<title>{escape(name)}: {x:g}, {y:.4g}</title></circle>"
                for x, y in line
            ]
        top = _TOP + 6 + _LEGEND_ROW * number
        parts.append(f'<rect x="{_LEFT + 8}" y="{top}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 26}" y="{top + 6}">{escape(name)}</text>')
    parts.append("</g></svg>")
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool

    @classmethod
    def linear(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(0.0, min(values)), max(values)
        if high <= low:
            high = low + 1.0
        step = _nice((high - low) / 6)
        first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
        ticks = tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks, log=False)

    @classmethod
    def logarithmic(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        first = math.floor(math.log10(min(values)))
        last = max(first + 1, math.ceil(math.log10(max(values))))
        ticks = tuple(10.0**i for i in range(first, last + 1))
        return cls(first, last, start, end, ticks, log=True)

    def place(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step), 10 * power)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'
