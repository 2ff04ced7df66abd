"""A status query counts as asked only after its POST. Queries that are stored already count."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0038_alarms_of_disputes")]

    operations = [
        migrations.AddField(
            model_name="statusquery",
            name="is_put",
            field=models.BooleanField(
                db_default=True,
                default=True,
                help_text="Whether its POST was made. A worker may die before it.",
            ),
        ),
    ]
