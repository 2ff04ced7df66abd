"""A request has at most three digits in its number. A parked callback is stored once for each request."""

from django.contrib.postgres.operations import AddConstraintNotValid
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0032_pruned_day_totals")]

    operations = [
        AddConstraintNotValid(
            model_name="attempt",
            constraint=models.CheckConstraint(
                condition=models.Q(("number__gte", 1), ("number__lte", 999)), name="attempt_number_fits_its_id"
            ),
        ),
        migrations.AddConstraint(
            model_name="callback",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "plain"), _negated=True),
                fields=("kind", "attempt", "query", "reading", "originator_conversation_id", "digest", "trusted"),
                name="callback_once_an_address",
                nulls_distinct=False,
            ),
        ),
        migrations.RemoveConstraint(model_name="callback", name="callback_stored_once"),
    ]
