"""What the Tinker wire says of keys: where it reads them, and how it refuses."""

from collections.abc import Mapping

NO_KEY = "This request carries no API key: set TINKER_API_KEY to one from the Settings page."
WRONG_KEY = (
    "This API key is unknown or was revoked: set TINKER_API_KEY to one from the Settings page."
)
INVALID_TOKEN = 'Bearer error="invalid_token"'  # by this the SDK gets itself another token
READ_ONLY = "The user of this API key is a viewer of its project: it may read, not change."


def read_key(headers: Mapping[str, str]) -> str:
    return headers.get("x-api-key", "")
