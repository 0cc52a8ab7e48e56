"""The parts that pages are built from: icons, badges, fields, empty states, crumbs, the rail."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django import template
from django.forms import BoundField, CheckboxInput
from django.template.context import RequestContext
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

# Paths in a box of 16 by 16, drawn with a stroke.
ICONS = {
    "hone": "M3 12.5 12.5 3M6 13.5h7.5V6M3 8.5v-5h5",
    "overview": "M2.5 2.5h4.5v6H2.5zM9 2.5h4.5v3H9zM9 7.5h4.5v6H9zM2.5 10.5h4.5v3H2.5z",
    "runs": "M2 12.5l3.5-5 3 2.5L13.5 3M10.5 3h3v3",
    "datasets": "M2.5 4c0-1 2.5-1.7 5.5-1.7s5.5.7 5.5 1.7-2.5 1.7-5.5 1.7S2.5 5 2.5 4zM2.5 4v8c0 1"
    " 2.5 1.7 5.5 1.7s5.5-.7 5.5-1.7V4M2.5 8c0 1 2.5 1.7 5.5 1.7s5.5-.7 5.5-1.7",
    "checkpoints": "M8 1.8 14 5 8 8.2 2 5zM2 8l6 3.2L14 8M2 11l6 3.2L14 11",
    "evals": "M2.5 3.5l1 1 2-2M2.5 8.5l1 1 2-2M2.5 13.5l1 1 2-2M8 4h5.5M8 9h5.5M8 13.5h5.5",
    "playground": "M2.5 3h11v8h-6L4.5 13.5V11h-2z",
    "deployments": "M2.5 2.5h11v4.5h-11zM2.5 9h11v4.5h-11zM5 4.8h.1M5 11.2h.1",
    "settings": "M2 4.5h6M12 4.5h2M10 2.8v3.4M2 11.5h2M8 11.5h6M6 9.8v3.4",
    "clock": "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2zM8 5v3.2l2 1.3",
    "play": "M5 3v10l8-5z",
    "pause": "M5.5 3v10M10.5 3v10",
    "stop": "M4 4h8v8H4z",
    "check": "M3 8.5l3.2 3.2L13 4.5",
    "cross": "M4 4l8 8M12 4l-8 8",
    "alert": "M8 2.2 14.3 13H1.7zM8 6.5v3M8 11.3v.1",
    "info": "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2zM8 7.3V11M8 5v.1",
    "dash": "M4 8h8",
    "copy": "M5.5 5.5h8v8h-8zM3 10.5h-.5v-8h8V3",
    "plus": "M8 3v10M3 8h10",
    "search": "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM10.5 10.5l3 3",
    "switch": "M5 6l3-3 3 3M5 10l3 3 3-3",
    "menu": "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
    "sun": "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6zM8 1.5v1.4M8 13.1v1.4M1.5 8h1.4"
    "M13.1 8h1.4M3.4 3.4l1 1M11.6 11.6l1 1M12.6 3.4l-1 1M4.4 11.6l-1 1",
    "branch": "M4.5 2.5v11M4.5 9.5c4 0 7-1 7-4.5M11.5 2.5v2",
    "save": "M2.5 2.5h8.5l2.5 2.5v8.5h-11zM5 2.5v3.5h5V2.5M5 13.5V9.5h6v4",
    "download": "M8 2.5v7.5M4.8 7 8 10.2 11.2 7M2.5 13.5h11",
    "upload": "M8 10.5V3M4.8 6 8 2.8 11.2 6M2.5 13.5h11",
    "arrow": "M3 8h10M9.5 4.5 13 8l-3.5 3.5",
    "user": "M8 2.5a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6zM2.8 13.8c.6-2.6 2.6-3.8 5.2-3.8"
    "s4.6 1.2 5.2 3.8",
    "device": "M4 4h8v8H4zM6.5 6.5h3v3h-3zM6 1.8V4M10 1.8V4M6 12v2.2M10 12v2.2M1.8 6H4M1.8 10H4"
    "M12 6h2.2M12 10h2.2",
    "key": "M10.5 2.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM8.3 7.7 2.5 13.5M4.5 11.5l1.5 1.5",
    "trash": "M2.5 4h11M6 4V2.5h4V4M4 4l.6 9.5h6.8L12 4M6.5 7v4M9.5 7v4",
    "pin": "M8 10v4M5.5 2.5h5l-.6 4.2 1.9 2.3v1H4.2V9l1.9-2.3z",
    "more": "M3.5 8h.1M8 8h.1M12.5 8h.1",
    "down": "M4 6l4 4 4-4",
    "up": "M4 10l4-4 4 4",
}

# Status of anything -> (tone, icon). The word itself is always written beside the icon.
STATUSES = {
    "queued": ("", "clock"),
    "building": ("busy", "clock"),
    "validating": ("busy", "clock"),
    "reading": ("busy", "clock"),
    "asking": ("busy", "play"),
    "review": ("warn", "alert"),
    "accepted": ("good", "check"),
    "rejected": ("", "cross"),
    "proposed": ("", "clock"),
    "loading": ("busy", "clock"),
    "running": ("busy", "play"),
    "paused": ("warn", "pause"),
    "needs_decision": ("warn", "alert"),
    "expiring": ("warn", "clock"),
    "done": ("good", "check"),
    "ready": ("good", "check"),
    "alive": ("good", "check"),
    "proven": ("good", "check"),
    "supported": ("good", "check"),
    "refused": ("warn", "dash"),
    "waiting": ("busy", "clock"),
    "moved": ("good", "check"),
    "rolled_back": ("warn", "arrow"),
    "broken": ("bad", "cross"),
    "failed": ("bad", "cross"),
    "lost": ("bad", "alert"),
    "cancelled": ("", "dash"),
    "discarded": ("", "dash"),
    "stopped": ("", "stop"),
    "deleted": ("", "trash"),
    "revoked": ("", "dash"),
}

RAIL = (
    ("Overview", "overview", "overview"),
    ("Runs", "runs", "runs"),
    ("Datasets", "datasets", "datasets"),
    ("Checkpoints", "checkpoints", "checkpoints"),
    ("Evals", "evals", "evals"),
    ("Playground", "playground", "playground"),
    ("Deployments", "deployments", "deployments"),
    ("Settings", "settings", "settings"),
)


@register.simple_tag
def icon(name: str) -> SafeString:
    path = mark_safe(ICONS[name])
    return format_html(
        '<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d="{}"/></svg>', path
    )


@register.simple_tag
def badge(status: str, word: str = "") -> SafeString:
    """A status as icon and word: `{% badge run.status %}`, `{% badge "ready" "serving" %}`."""
    tone, name = STATUSES.get(status, ("", "dash"))
    written = word or status.replace("_", " ")
    return format_html('<span class="badge {}">{}{}</span>', tone, icon(name), written)


@register.inclusion_tag("components/copy.html")
def copy(text: str, label: str = "Copy") -> dict[str, str]:
    """A button that copies `text`."""
    return {"text": text, "label": label}


@register.inclusion_tag("components/code.html")
def code(text: str) -> dict[str, str]:
    """A block of code with a copy button."""
    return {"text": text}


@register.inclusion_tag("components/field.html")
def field(bound: BoundField, unit: str = "") -> dict[str, Any]:
    """Label, control, hint and errors of one form field, tied together for screen readers."""
    described = " ".join(
        part
        for part, is_there in (
            (f"{bound.auto_id}-hint", bound.help_text),
            (f"{bound.auto_id}-error", bound.errors),
        )
        if is_there
    )
    attributes: dict[str, str | bool] = {"aria-describedby": described} if described else {}
    if bound.errors:
        attributes["aria-invalid"] = "true"
    return {
        "bound": bound,
        "control": bound.as_widget(attrs=attributes),
        "is_check": isinstance(bound.field.widget, CheckboxInput),
        "unit": unit,
    }


@register.inclusion_tag("components/stat.html")
def stat(label: str, value: str, note: str = "", trend: Sequence[float] = ()) -> dict[str, Any]:
    """One stat card, inside `<div class="stats">`."""
    return {"label": label, "value": value, "note": note, "trend": trend}


@register.inclusion_tag("components/empty.html")
def empty_state(
    title: str, text: str, url: str = "", button: str = "", command: str = ""
) -> dict[str, str]:
    """What fills an empty list: a button, or the exact command."""
    return {"title": title, "text": text, "url": url, "button": button, "command": command}


@register.inclusion_tag("components/crumbs.html")
def crumbs(*parts: str) -> dict[str, list[tuple[str, str]]]:
    """`{% crumbs "Runs" runs_url run.name %}`: pairs of text and URL; a last text without one."""
    pairs = [
        (parts[i], parts[i + 1] if i + 1 < len(parts) else "") for i in range(0, len(parts), 2)
    ]
    return {"crumbs": pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class RailItem:
    label: str
    icon: str
    url: str
    is_current: bool


@register.inclusion_tag("components/rail.html", takes_context=True)
def rail(context: RequestContext) -> dict[str, list[RailItem]]:
    """The sections of the product; the one whose path the page lies under is current."""
    path = context["request"].path
    items = []
    for label, name, picture in RAIL:
        try:
            url = reverse(name)
        except NoReverseMatch:
            continue
        is_current = path == url if url == "/" else path.startswith(url)
        items.append(RailItem(label=label, icon=picture, url=url, is_current=is_current))
    return {"items": items}


@register.simple_tag(takes_context=True)
def with_query(context: RequestContext, **changes: object) -> str:
    """This page's query with some parameters changed; None or an empty text drops one."""
    query = context["request"].GET.copy()
    for name, value in changes.items():
        if value in (None, ""):
            query.pop(name, None)
        else:
            query[name] = str(value)
    return f"?{query.urlencode()}"
