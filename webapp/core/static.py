"""Our own files, such as scripts and styles: found and described by WhiteNoise, streamed by us."""

from django.http import FileResponse, HttpRequest
from whitenoise.middleware import WhiteNoiseFileResponse, WhiteNoiseMiddleware
from whitenoise.responders import StaticFile

from webapp.core.streams import StreamedResponse


class StreamedFile(StreamedResponse, WhiteNoiseFileResponse):  # type: ignore[misc] # untyped
    """WhiteNoise's own is a plain iterator, which Django would read to its end under ASGI."""


class StaticMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc] # untyped
    """Answers for /static/ before anything else is asked."""

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> FileResponse:
        found = static_file.get_response(request.method, request.META)
        response = StreamedFile(found.file or (), status=int(found.status))
        del response["content-type"]  # the file's own is among its headers
        for name, value in found.headers:
            response[name] = value
        return response
