"""How REST reads a JSON body."""

from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from webapp.core.bodies import parse_json
from webapp.core.errors import UserError

MAX_JSON_BYTES = 8 * 1024**2  # rows come as files; settings and messages are small


class BoundedJSONParser(BaseParser):
    """Objects take many times the room of their text, so the text is short."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,  # noqa: ARG002 - DRF passes both
        parser_context: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> Any:
        body = stream.read(MAX_JSON_BYTES + 1)
        if len(body) > MAX_JSON_BYTES:
            raise UserError(f"The body has more than {MAX_JSON_BYTES // 2**20} MiB of JSON.")
        return parse_json(body)
