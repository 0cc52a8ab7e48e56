"""Turns the caller's mistakes into answers: a 404, or a page that says what to change."""

from collections.abc import Callable

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render

from webapp.core.errors import NotFound, UserError


class UserErrorMiddleware:
    """Views let `UserError` rise where a form cannot show it beside its field."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if isinstance(error, NotFound):
            raise Http404(error.message) from error
        if isinstance(error, UserError):
            return render(request, "user_error.html", {"message": error.message}, status=400)
        return None
