"""The graph as shapes and words of an SVG: what a template writes down."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from webapp.lineage.graph import Node, describe
from webapp.lineage.layout import HEIGHT, WIDTH, Layout, Spot

PADDING = 14
WORD_PIXELS = WIDTH - 2 * PADDING
W, H = WIDTH, HEIGHT
# Each kind has a shape of its own, beside its word.
SHAPES: Mapping[str, str] = {
    "base": f"M10 0H{W - 10}L{W} 10V{H - 10}L{W - 10} {H}H10L0 {H - 10}V10Z",
    "dataset": f"M0 3C0 -2 {W} -2 {W} 3V{H - 3}C{W} {H + 2} 0 {H + 2} 0 {H - 3}ZC0 8 {W} 8 {W} 3",
    "run": f"M22 0H{W - 22}A22 22 0 0 1 {W - 22} {H}H22A22 22 0 0 1 22 0Z",
    "checkpoint": f"M0 0H{W - 12}L{W} 12V{H}H0ZM{W - 12} 0V12H{W}",
    "evaluation": f"M10 0H{W - 10}L{W} {H // 2}L{W - 10} {H}H10L0 {H // 2}Z",
    "deployment": f"M0 0H{W}V{H}H0ZM5 0V{H}",
    "alias": f"M12 0H{W}V{H}H12L0 {H // 2}Z",
}
WORDS = {"base": "base model", "dataset": "dataset version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A node with everything that a template needs of it."""

    node: Node
    x: int
    y: int
    label: str
    detail: str
    title: str
    is_current: bool
    is_hit: bool
    closes: Sequence[str]  # folds that are open at it

    @property
    def shape(self) -> str:
        return SHAPES[self.node.kind]

    @property
    def word(self) -> str:
        return name_kind(self.node)


def name_kind(node: Node) -> str:
    return WORDS.get(node.kind, node.kind)


def draw(
    layout: Layout,
    *,
    current: str,
    hits: Collection[str],
    opened: Mapping[str, Sequence[str]],
) -> list[Drawn]:
    return [
        _draw_node(
            spot,
            is_current=spot.node.id == current,
            is_hit=spot.node.id in hits,
            closes=opened.get(spot.node.id, ()),
        )
        for spot in layout.spots
    ]


def _draw_node(spot: Spot, *, is_current: bool, is_hit: bool, closes: Sequence[str]) -> Drawn:
    node = spot.node
    detail = node.detail if node.fold else f"{name_kind(node)}, {node.detail}"
    return Drawn(
        node=node,
        x=spot.x,
        y=spot.y,
        label=shorten(node.label, WORD_PIXELS, pixels=7.7),
        detail=shorten(detail, WORD_PIXELS, pixels=6.8),
        title=describe(node),
        is_current=is_current,
        is_hit=is_hit,
        closes=closes,
    )


def shorten(text: str, room: int, *, pixels: float) -> str:
    """As much as fits a line: an SVG neither wraps nor cuts words by itself."""
    used = 0.0
    for place, character in enumerate(text):
        used += pixels * _weigh(character)
        if used > room:
            return text[: max(place - 1, 1)].rstrip(" ,") + "…"
    return text


def _weigh(character: str) -> float:
    if character in "iljtf.,:;'|! ()[]":
        return 0.55
    if character in "mwMW@%":
        return 1.4
    return 1.9 if unicodedata.east_asian_width(character) in "WF" else 1.0
