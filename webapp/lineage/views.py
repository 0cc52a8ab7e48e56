"""The page of the lineage."""

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from webapp.accounts.middleware import ActorRequest
from webapp.lineage.pages import (
    DEPTHS,
    MOST_HITS,
    Question,
    answer,
    describe_bounds,
    make_picture,
    write_links,
)


@login_required
@require_GET
def show_lineage(request: ActorRequest) -> HttpResponse:
    question = Question.read(request.GET)
    answered = answer(request.actor, question)
    picture = make_picture(answered)
    looked_at = answered.graph.nodes.get(question.focus)
    context = {
        "question": question,
        "answered": answered,
        "picture": picture,
        "nodes": [(each, write_links(question, each)) for each in picture.drawn],
        "looked_at": looked_at,
        "hits": [(node, question.write(focus=node.id)) for node in answered.hits[:MOST_HITS]],
        "depths": [(depth, question.write(depth=depth)) for depth in (*DEPTHS, None)],
        "num_folded": answered.num_all - len(answered.graph.nodes),
        "everything": question.write(focus="", depth=None),
        "unfolded": question.write(is_folded=False, opened=frozenset()),
        "refolded": question.write(is_folded=True, opened=frozenset()),
        "bounds": describe_bounds(answered, picture),
    }
    return render(request, "lineage/lineage.html", context)
