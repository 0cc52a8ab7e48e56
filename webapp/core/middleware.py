"""The caller's mistakes become answers, and pages say what a browser may load for them."""

from collections.abc import Callable
from urllib.parse import quote

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render

from webapp.core.errors import DISK_FULL, NotFound, UserError, is_disk_full

# Plotly and the chart pages set styles at run time; scripts come from our own files alone.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; connect-src 'self' ws: wss:; object-src 'none';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Their templates carry inline scripts: the admin's, and the REST schema's page.
WITHOUT_POLICY = ("/admin/", "/rest/")
UNKNOWN = "\ufffd"


class StorableTextMiddleware:
    """PostgreSQL stores no NUL, and asks for none. In an address or a cookie it becomes what Django
    makes of bytes that are no UTF-8: a character that no name has."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.path = request.path.replace("\0", UNKNOWN)
        request.path_info = request.path_info.replace("\0", UNKNOWN)
        query = request.META.get("QUERY_STRING", "")
        request.META["QUERY_STRING"] = query.replace("%00", quote(UNKNOWN))
        for name, value in request.COOKIES.items():
            request.COOKIES[name] = value.replace("\0", UNKNOWN)
        return self.get_response(request)


class UserErrorMiddleware:
    """Views let `UserError` rise where a form cannot show it beside its field. What no database
    stores reaches no view."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], *_: object
    ) -> HttpResponse | None:
        """Programs' paths read no forms."""
        if request.method != "POST" or getattr(view, "csrf_exempt", False):
            return None
        for name, values in request.POST.lists():
            if any("\0" in each for each in (name, *values)):
                message = f"{name!r:.100} of the form has a NUL character: leave it out."
                return render(request, "user_error.html", {"message": message}, status=400)
        return None

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if isinstance(error, NotFound):
            raise Http404(error.message) from error
        if isinstance(error, UserError):
            return render(request, "user_error.html", {"message": error.message}, status=400)
        if is_disk_full(error):
            return render(request, "user_error.html", {"message": DISK_FULL}, status=507)
        return None


class ContentPolicyMiddleware:
    """Nothing inline runs, so text of a user that slipped through unescaped does nothing."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if not request.path.startswith(WITHOUT_POLICY):
            response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
        return response
