"""Links to files of checkpoints: whoever holds one may fetch that file for an hour, keyless."""

from datetime import timedelta

from django.core import signing
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from webapp.checkpoints.models import Checkpoint

LIFETIME = timedelta(hours=1)  # the SDK asks for new ones when five minutes are left
ARCHIVE = "checkpoint.tar"  # no file of a folder: all of them, packed on their way out
SALT = "webapp.checkpoints.links"


def write_url(request: HttpRequest, checkpoint: Checkpoint, file: str) -> str:
    """Absolute, under the host, scheme and prefix that the request came by."""
    token = signing.dumps([checkpoint.pk, file], salt=SALT)
    path = reverse("checkpoint-file", args=[checkpoint.pk, file])
    return request.build_absolute_uri(f"{path}?{urlencode({'token': token})}")


def find_refusal(token: str, checkpoint_id: str, file: str) -> str:
    """Why this token does not open this file; empty where it does."""
    try:
        signed = signing.loads(token, salt=SALT, max_age=LIFETIME)
    except signing.SignatureExpired:
        return "This link has expired: ask for new urls."
    except signing.BadSignature:
        return "This link's token is missing or was changed: take the whole url as it was given."
    if signed != [checkpoint_id, file]:
        return "This link's token is for another file: take the whole url as it was given."
    return ""
