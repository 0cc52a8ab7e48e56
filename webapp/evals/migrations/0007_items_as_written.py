"""On PostgreSQL objects keep the order of their keys; elsewhere they always did."""

from django.db import migrations

import webapp.core.columns


def change_type(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            "ALTER TABLE evals_evalsuite ALTER COLUMN items TYPE json USING items::json"
        )


class Migration(migrations.Migration):
    dependencies = [("evals", "0006_rules_of_aliases")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(change_type, migrations.RunPython.noop)],
            state_operations=[
                migrations.AlterField(
                    model_name="evalsuite",
                    name="items",
                    field=webapp.core.columns.WrittenJSONField(default=list),
                )
            ],
        )
    ]
