"""A column for JSON that is shown to models as it was written."""

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.types.json import Json

POSTGRES = "postgresql"


class WrittenJSONField(models.JSONField):
    """PostgreSQL's jsonb, which Django takes, sorts the keys of objects: a template that writes
    tools into a prompt would write others than the model was trained on. Its json keeps them."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "json" if connection.vendor == POSTGRES else super().db_type(connection)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        if connection.vendor == POSTGRES:
            return Json(value)
        return super().get_db_prep_value(value, connection, prepared)

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        """PostgreSQL's driver has read it already."""
        if connection.vendor == POSTGRES:
            return value
        return super().from_db_value(value, expression, connection)
