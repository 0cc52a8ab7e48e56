"""Resource names: `accounts/<account>/<what>/<id>`, and which of our rows they mean."""

import re

from webapp.core.errors import NotFound, UserError
from webapp.firetitan.models import LONGEST_ID
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.fleet.services import find_base_model as find_by_name

LABEL = re.compile(rf"[a-z0-9]([a-z0-9-]{{0,{LONGEST_ID - 2}}}[a-z0-9])?")


def make_slug(name: str) -> str:
    """`Qwen/Qwen3-0.6B` is `qwen3-0-6b` in a resource name."""
    return re.sub("[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")[:LONGEST_ID]


def read_last(name: str) -> str:
    """The id in a resource name, or the name itself."""
    return name.rstrip("/").rpartition("/")[2]


def check_id(value: str, field: str) -> str:
    if not LABEL.fullmatch(value):
        raise UserError(
            f"{field} is {value[:100]!r}: an id has 1 to {LONGEST_ID} small letters, digits and"
            " dashes, and begins and ends with a letter or digit.",
            field=field,
        )
    return value


def find_base_model(name: str) -> BaseModel:
    """By its name here, or by the last part of `accounts/*/models/<id>`: whoever published it
    there, the one of that name here is meant.
    """
    try:
        return find_by_name(name.replace("\0", ""))
    except NotFound as error:
        for each in BaseModelName.objects.select_related("base_model"):
            if read_last(name).lower() in list_slugs(each.name):
                return each.base_model
        raise NotFound(error.message, field="baseModel") from None


def list_slugs(name: str) -> tuple[str, str, str]:
    """What a resource name may end with. Fireworks write a dot as p: `qwen2p5-7b`."""
    dotted = re.sub(r"(?<=\d)\.(?=\d)", "p", name)
    return read_last(name).lower(), make_slug(name), make_slug(dotted)
