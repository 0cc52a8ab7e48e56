"""What pages call a recipe."""

from django import template

from webapp.runs.methods import METHODS

register = template.Library()


@register.filter
def method_label(recipe: str) -> str:
    """A client's own loop keeps the name that its program gives it."""
    method = METHODS.get(recipe)
    return method.label if method else recipe
