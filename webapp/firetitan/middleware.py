"""Errors below this dialect's paths become its answers."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from webapp.firetitan.errors import answer_error

PREFIXES = ("/v1/accounts", "/training/v1/", "/hot_load/")


class FiretitanErrorMiddleware:
    """Asked before the pages' own middleware, which would render a page."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        return answer_error(request.path, error) if request.path.startswith(PREFIXES) else None
