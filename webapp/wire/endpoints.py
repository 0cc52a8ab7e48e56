"""What an endpoint of any wire begins with: its methods, and whose key came along."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from webapp.accounts.models import Actor


class KeyedRequest(HttpRequest):
    """A request that came with a key."""

    actor: Actor


View = Callable[..., HttpResponse]
Decorator = Callable[[View], View]


def make_endpoint(
    admit: Callable[[KeyedRequest], JsonResponse | None],
    refuse: Callable[[str, int], JsonResponse],
) -> Callable[..., Decorator]:
    """`endpoint("GET", "POST")` of one wire. `admit` sets the actor, or says why not."""

    def endpoint(*methods: str) -> Decorator:
        def decorate(view: View) -> View:
            @csrf_exempt  # keys, not cookies, open this door
            @wraps(view)
            def answer(request: KeyedRequest, *args: Any, **kwargs: Any) -> HttpResponse:
                if request.method not in methods:
                    return refuse(f"{request.path} answers {' and '.join(methods)} only.", 405)
                return admit(request) or view(request, *args, **kwargs)

            return answer

        return decorate

    return endpoint
