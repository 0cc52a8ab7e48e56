"""`{% load lineage %}`: where the thing of a page comes from, as breadcrumbs and as a graph."""

from typing import Any

from django import template

from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import NotFound
from webapp.lineage.pages import Question, answer_in, make_picture, write_links
from webapp.lineage.trails import Thing, list_origins

register = template.Library()


@register.inclusion_tag("lineage/_origin.html")
def origin(thing: Thing) -> dict[str, Any]:
    """The chain from its data to itself, each a link, and a link to the graph."""
    return {"crumbs": list_origins(thing), "thing": thing}


@register.inclusion_tag("lineage/_around.html")
def lineage_around(checkpoint: Checkpoint) -> dict[str, Any]:
    """The graph around one checkpoint. None of those that pass, which are in no graph."""
    question = Question(focus=checkpoint.pk)
    try:
        around = checkpoint.run.created_at
        picture = make_picture(answer_in(checkpoint.project_id, question, around=around))
    except NotFound:
        return {"nodes": []}
    nodes = [(each, write_links(question, each)) for each in picture.drawn]
    return {"picture": picture, "nodes": nodes, "small": True}
