"""On PostgreSQL objects keep the order of their keys; elsewhere they always did."""

from django.db import migrations

import webapp.core.columns


def change_type(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            "ALTER TABLE deployments_samplingcall ALTER COLUMN payload TYPE json USING payload::json"
        )


class Migration(migrations.Migration):
    dependencies = [("deployments", "0008_calls_found_again")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(change_type, migrations.RunPython.noop)],
            state_operations=[
                migrations.AlterField(
                    model_name="samplingcall",
                    name="payload",
                    field=webapp.core.columns.WrittenJSONField(),
                )
            ],
        )
    ]
