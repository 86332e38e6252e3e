"""Charts as SVG text: sizes and classes only, colours are the stylesheet's, so that both themes and the policy are served."""

from __future__ import annotations

from datetime import datetime
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from markupsafe import Markup, escape

__all__ = ["Dot", "Span", "areas", "bar", "scatter", "sparkline", "timeline"]


class Dot(NamedTuple):
    """A point of a map.

    Attributes:
        x: Any number.
        y: Any number.
        label: Shown when it is pointed at.
        link: Where it leads.
        kind: A class: "", "chosen" or "near".
    """

    x: float
    y: float
    label: str
    link: str
    kind: str = ""


def sparkline(values: Sequence[Optional[float]], *, label: str, width: int = 160, height: int = 32) -> Markup:
    """Return a line of `values`, oldest first; None leaves a gap.

    Args:
        values: Any numbers.
        label: What it shows, for those who do not see it.
        width: In pixels.
        height: In pixels.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup('<span class="muted small">collecting …</span>')
    top = max(known) or 1.0
    step = width / (len(values) - 1)
    runs: List[List[str]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
            continue
        runs[-1].append(f"{index * step:.1f},{height - 2 - (height - 6) * value / top:.1f}")
    lines = [Markup('<polyline points="{}"/>').format(" ".join(run)) for run in runs if len(run) > 1]
    area = _area(runs[0], height) if len(runs) == 1 else Markup("")
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{label}">'
        "<title>{label}</title>{area}{lines}</svg>"
    ).format(w=width, h=height, label=label, area=area, lines=Markup("").join(lines))


def _area(points: Sequence[str], height: int) -> Markup:
    first, last = points[0].split(",")[0], points[-1].split(",")[0]
    return Markup('<polygon points="{},{h} {} {},{h}"/>').format(first, " ".join(points), last, h=height)


def areas(
    series: Sequence[Tuple[str, Sequence[Optional[float]]]], *, label: str, width: int = 720, height: int = 90
) -> Markup:
    """Return areas over time, one on top of the other, each with a class of its own name.

    Args:
        series: Class and numbers of each, oldest first, as many of each; None, where it is not known, counts as 0.
        label: What they show.
        width: In pixels.
        height: In pixels.
    """
    moments = len(series[0][1]) if series else 0
    if moments < 2:
        return Markup('<span class="muted small">collecting …</span>')
    floors = [0.0] * moments
    heaps: List[Tuple[str, List[float], List[float]]] = []
    for name, values in series:
        tops = [floor + (value or 0.0) for floor, value in zip(floors, values)]
        heaps.append((name, floors, tops))
        floors = tops
    scale = (height - 4) / (max(floors) or 1.0)
    step = width / (moments - 1)

    def line(heights: Sequence[float]) -> List[str]:
        return [f"{index * step:.1f},{height - scale * value:.1f}" for index, value in enumerate(heights)]

    pieces = [
        Markup('<polygon class="part-{}" points="{}"/>').format(
            name, " ".join(line(tops) + line(bottoms)[::-1])
        )
        for name, bottoms, tops in heaps
        if tops != bottoms
    ]
    return Markup(
        '<svg class="areas" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        "<title>{label}</title>{pieces}</svg>"
    ).format(w=width, h=height, label=label, pieces=Markup("").join(pieces))


def bar(parts: Sequence[Tuple[str, float]], *, label: str, width: int = 320, height: int = 10) -> Markup:
    """Return one bar of several parts, each with a class of its own name.

    Args:
        parts: Class and size of each.
        label: What it shows.
        width: In pixels.
        height: In pixels.
    """
    total = sum(size for _, size in parts)
    pieces, x = [], 0.0
    for name, size in parts:
        if not size or not total:
            continue
        wide = width * size / total
        pieces.append(
            Markup(
                '<rect class="part-{}" x="{}" y="0" width="{}" height="{}"><title>{}: {:g}</title></rect>'
            ).format(name, f"{x:.1f}", f"{wide:.1f}", height, name, size)
        )
        x += wide
    return Markup(
        '<svg class="bar" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" aria-label="{label}">{pieces}</svg>'
    ).format(w=width, h=height, label=label, pieces=Markup("").join(pieces))


def scatter(dots: Sequence[Dot], *, label: str, width: int = 720, height: int = 440) -> Markup:
    """Return a map of points, each a link.

    Args:
        dots: At any scale.
        label: What it shows.
        width: In pixels.
        height: In pixels.
    """
    if not dots:
        return Markup("")
    left, right = min(dot.x for dot in dots), max(dot.x for dot in dots)
    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    margin = 16

    def place(value: float, least: float, most: float, size: int) -> str:
        share = 0.5 if most == least else (value - least) / (most - least)
        return f"{margin + share * (size - 2 * margin):.1f}"

    order: Any = sorted(dots, key=lambda dot: bool(dot.kind))
    points = [
        Markup(
            '<a href="{}"><circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle></a>'
        ).format(
            dot.link,
            dot.kind,
            place(dot.x, left, right, width),
            place(-dot.y, -high, -low, height),
            7 if dot.kind == "chosen" else 5,
            escape(dot.label),
        )
        for dot in order
    ]
    return Markup(
        '<svg class="map" viewBox="0 0 {w} {h}" role="group" aria-label="{label}">{points}</svg>'
    ).format(w=width, h=height, label=label, points=Markup("").join(points))


class Span(NamedTuple):
    """A stretch of time.

    Attributes:
        begin: When it began.
        end: When it ended; later.
        kind: A class: the state of what it stands for.
        label: Shown when it is pointed at.
    """

    begin: datetime
    end: datetime
    kind: str
    label: str


def timeline(spans: Sequence[Span], *, label: str, width: int = 720) -> Markup:
    """Return bars over a common axis of time, one row for each span.

    Args:
        spans: The oldest first.
        label: What it shows.
        width: In pixels.
    """
    if not spans:
        return Markup("")
    first = min(span.begin for span in spans)
    whole = max(0.001, (max(span.end for span in spans) - first).total_seconds())
    row, rows = 16, []
    for index, span in enumerate(spans):
        x = width * (span.begin - first).total_seconds() / whole
        wide = max(3.0, width * (span.end - span.begin).total_seconds() / whole)
        rows.append(
            Markup(
                '<rect class="track" x="0" y="{y}" width="{w}" height="10" rx="3"/>'
                '<rect class="part-{kind}" x="{x}" y="{y}" width="{wide}" height="10" rx="3"><title>{label}</title></rect>'
            ).format(
                y=index * row,
                w=width,
                kind=span.kind,
                x=f"{min(x, width - 3):.1f}",
                wide=f"{wide:.1f}",
                label=span.label,
            )
        )
    return Markup(
        '<svg class="runs" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{rows}</svg>'
    ).format(w=width, h=len(spans) * row, label=label, rows=Markup("").join(rows))
