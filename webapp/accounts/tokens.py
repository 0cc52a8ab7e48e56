"""Tokens that stand for a key for an hour: the SDK sends them instead of the key itself.

They say in the open whose they are; the key they stand for decides whether they still open.
"""

from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import jwt
from django.conf import settings
from django.utils.timezone import now

from webapp.accounts.models import ApiKey

LIFETIME = timedelta(hours=1)  # the SDK gets itself a new one at half of it
ALGORITHM = "HS256"
ISSUER = "hone"
PREFIX = "eyJ"  # of every JSON object in base64, which is how a token begins
NEEDED = ["iat", "exp", "iss", "key"]


def is_token(secret: str) -> bool:
    return secret.startswith(PREFIX)


def make_token(key: ApiKey, *, until: datetime | None = None) -> str:
    """`until`: no longer than another token that was shown for it."""
    begins_at = now()
    ends_at = min(begins_at + LIFETIME, until or begins_at + LIFETIME)
    claims = {
        "iss": ISSUER,
        "iat": int(begins_at.timestamp()),
        "exp": int(ends_at.timestamp()),
        "sub": key.user.urn,
        "org_id": key.project_id,
        "email": key.user.email,
        "key": key.pk,
    }
    return jwt.encode(claims, _derive_secret(), algorithm=ALGORITHM)


def read_token(token: str) -> dict[str, Any] | None:
    """What it claims. None: expired, changed, or none of ours."""
    options: Any = {"require": NEEDED}
    try:
        return jwt.decode(
            token, _derive_secret(), algorithms=[ALGORITHM], issuer=ISSUER, options=options
        )
    except jwt.InvalidTokenError:
        return None


def read_end(token: str) -> datetime | None:
    """When a token ends; None for a key, which does not."""
    claims = read_token(token) if is_token(token) else None
    return datetime.fromtimestamp(claims["exp"], tz=now().tzinfo) if claims else None


def _derive_secret() -> bytes:
    """Apart from what else the installation's key signs."""
    return sha256(b"webapp.accounts.tokens:" + settings.SECRET_KEY.encode()).digest()
