"""Filters that write numbers, sizes, durations and times the way every page does."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import floor, isfinite, log10

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import now

from webapp.core.numbers import is_drawn

register = template.Library()

NOTHING = "–"  # noqa: RUF001 - an en dash: there is no value, which is not a zero
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"))


@register.filter
def exact(moment: datetime | None) -> str:
    """21 Nov 2026, 09:21:29 UTC"""
    if moment is None:
        return NOTHING
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC"


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """`3 min ago`, with the exact moment on hover; static/js/shell.js keeps it true."""
    if moment is None:
        return NOTHING
    return format_html(
        '<time datetime="{}" title="{}" data-ago>{}</time>',
        moment.astimezone(UTC).isoformat(timespec="seconds"),
        exact(moment),
        describe_age((now() - moment).total_seconds(), moment),
    )


def describe_age(seconds: float, moment: datetime) -> str:
    if seconds >= 30 * 86_400:
        return f"{moment.day} {moment:%b %Y}"
    for length, unit in SPANS:
        if seconds >= length:
            return f"{floor(seconds / length)} {unit} ago"
    return "just now"


@register.filter
def duration(value: timedelta | float | None) -> str:
    """`3 m 12 s`: the two largest units."""
    if value is None:
        return NOTHING
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    parts = [
        (whole // 86_400, "d"),
        (whole // 3_600 % 24, "h"),
        (whole // 60 % 60, "m"),
        (whole % 60, "s"),
    ]
    first = next(place for place, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)


@register.filter
def milliseconds(value: float | None) -> str:
    """`840 ms`, and seconds from ten of them on."""
    if value is None:
        return NOTHING
    return f"{value:.0f} ms" if value < 10_000 else duration(value / 1000)


@register.filter
def size(num_bytes: float | None) -> str:
    """Binary units: `1.2 GiB`."""
    if num_bytes is None:
        return NOTHING
    value, unit = float(num_bytes), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


@register.filter
def speed(flops: float) -> str:
    """Of a device's arithmetic: `150 GFLOP/s`. 0 was never measured."""
    if not flops:
        return NOTHING
    return f"{flops / 1e12:.1f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.0f} GFLOP/s"


@register.filter
def digits(value: float | None) -> str:
    """Four significant digits: losses and other measured numbers."""
    if value is None or not isfinite(value):
        return NOTHING if value is None else "not finite"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return scientific(value, places=3)
    return f"{value:#.4g}".rstrip(".")


loss = register.filter("loss", digits)


@register.filter
def signed(value: float | None) -> str:
    """As `digits`, and what is above 0 says so: `+0.2500`."""
    return f"+{digits(value)}" if value is not None and value > 0 else digits(value)


def scientific(value: float, *, places: int) -> str:
    mantissa, _, exponent = f"{value:.{places}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


@register.filter
def rate(value: float | None) -> str:
    """A learning rate: `1e-4`, `2.5e-5`, `0.01`."""
    if value is None:
        return NOTHING
    if value == 0 or abs(value) >= 1e-2:
        return f"{value:g}"
    text = scientific(value, places=2)
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


@register.filter
def count(value: float | None) -> str:
    """`12,345`"""
    return NOTHING if value is None else f"{value:,.0f}"


@register.filter
def compact(value: float | None) -> str:
    """`135M`, `1.2k`: for parameters and tokens, where the exact number says no more."""
    if value is None:
        return NOTHING
    if value < 1000:
        return f"{value:.0f}"
    power = min(int(log10(value) // 3), 4)
    scaled = value / 1000**power
    text = f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.1f}".removesuffix(".0")
    return text + ("", "k", "M", "B", "T")[power]


@register.filter
def percent(share: float | None) -> str:
    """A share from 0 to 1 as `42.5 %`."""
    return NOTHING if share is None else f"{share * 100:.1f}".removesuffix(".0") + " %"


@register.filter
def short(value: str, length: int = 12) -> SafeString | str:
    """The beginning of a digest, with the whole of it on hover."""
    if len(value) <= length:
        return value or NOTHING
    return format_html('<span class="mono" title="{}">{}</span>', value, value[:length])


@register.filter
def server(value: str) -> SafeString:
    """A sampling server's name; which start of it answered stands on hover."""
    return format_html('<span title="{}">{}</span>', value, value.partition("/")[0])


@register.filter
def or_dash(value: object) -> object:
    """For values that may be missing; zero is a value."""
    return NOTHING if value in (None, "") else value


@register.filter
def at(mapping: dict[str, object], key: str) -> object:
    """`{{ scores|at:name }}`: an entry under a key that is itself a variable."""
    return mapping.get(key)


@register.filter
def trail(values: Sequence[float], width: int = 72) -> str:
    """The points of a sparkline in a box of `width` by 24; empty where there is no line to draw."""
    kept = [value for value in values if is_drawn(value)]
    if len(kept) < 2:
        return ""
    low, high = min(kept), max(kept)
    span = (high - low) or 1.0
    gap = width / (len(kept) - 1)
    return " ".join(
        f"{place * gap:.1f},{22 - (value - low) / span * 20:.1f}"
        for place, value in enumerate(kept)
    )


@register.filter
def doubt(logprob: float | None) -> int:
    """How unlikely a token was, from 0 (expected) to 4: a shade of the token view."""
    if logprob is None:
        return 0
    return sum(logprob < limit for limit in (-0.2, -0.7, -1.6, -3.0))


@register.filter
def words(name: object) -> str:
    """`exact_match` as `exact match`."""
    return str(name).replace("_", " ").replace("json", "JSON")


@register.filter
def points(value: float) -> str:
    """A difference of two shares: `+3.6`, and `0.0` without a sign."""
    return f"{value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


@register.filter
def chance(p_value: float) -> str:
    """A p-value: `0.033`."""
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.2g}"


@register.filter
def unlocalized(value: float) -> str:
    """For attributes, where a locale's comma would be wrong."""
    return f"{value:.4f}"
