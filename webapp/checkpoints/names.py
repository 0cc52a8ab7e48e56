"""What a program may call a checkpoint, and how long it may ask that it be kept."""

import re

from webapp.core.errors import UserError
from webapp.core.fields import Fields

TTL_SECONDS = range(3600, 10 * 365 * 86_400 + 1)
# The SDK puts names into addresses as they are: "a?b" would be deleted as "a".
NAME = re.compile(r"(?!\s)[^/\\?#%\x00-\x1f\x7f\u2028\u2029]{1,199}(?<!\s)")


def read_name(fields: Fields) -> str:
    name = fields.text("path")
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(
            f"path is the checkpoint's name, {name[:60]!r}: send 1 to 199 characters without"
            " control characters and / \\ ? # %, which cannot stand in its address, and without"
            " blanks at its ends.",
            field="path",
        )
    return name


def read_ttl(fields: Fields) -> int:
    return fields.whole("ttl_seconds", least=TTL_SECONDS[0], most=TTL_SECONDS[-1])
