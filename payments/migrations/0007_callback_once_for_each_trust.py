from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0006_ledger_days")]

    operations = [
        migrations.RemoveConstraint(model_name="callback", name="callback_stored_once"),
        migrations.AddConstraint(
            model_name="callback",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "plain"), _negated=True),
                fields=("kind", "attempt", "query", "reading", "digest", "trusted"),
                name="callback_stored_once",
                nulls_distinct=False,
            ),
        ),
    ]
