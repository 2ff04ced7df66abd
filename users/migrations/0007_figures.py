"""The dated table of figures, with its first values. Its rows are never changed."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from users import first_figures

GUARDS = """
CREATE TRIGGER figure_stays BEFORE UPDATE OR DELETE ON users_figure
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('A figure is not changed. Add a row with a later date.');
CREATE TRIGGER figure_is_not_truncated BEFORE TRUNCATE ON users_figure
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('A figure is not changed. Add a row with a later date.');
"""


def install(apps, schema_editor):
    first_figures.install(apps.get_model("users", "Figure"))


class Migration(migrations.Migration):
    dependencies = [("users", "0006_permission_names")]

    operations = [
        migrations.CreateModel(
            name="Figure",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=80)),
                ("value", models.CharField(max_length=500)),
                ("valid_from", models.DateTimeField()),
                (
                    "source",
                    models.CharField(help_text="The law, form or decision that this value comes from.", max_length=500),
                ),
                (
                    "certainty",
                    models.CharField(
                        blank=True,
                        choices=[("high", "High"), ("medium", "Medium"), ("unverified", "Unverified")],
                        max_length=10,
                    ),
                ),
                ("set_at", models.DateTimeField()),
                (
                    "set_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={"indexes": [models.Index(fields=["name", "valid_from", "id"], name="figure_by_name")]},
        ),
        migrations.RunPython(install, migrations.RunPython.noop),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
