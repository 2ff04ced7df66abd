"""One total per member and Nairobi day, for M-Pesa's limit of the day."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

# Requests of today count already. Reads the attempts once and locks only those of today.
COUNT_TODAY = """
WITH counted AS (
    UPDATE payments_attempt a SET counted_on = (now() AT TIME ZONE 'Africa/Nairobi')::date
    FROM payments_transaction t
    WHERE t.id = a.transaction_id AND a.kind = 'b2c' AND a.state <> 'FAILED'
      AND a.opened_at >= date_trunc('day', now() AT TIME ZONE 'Africa/Nairobi') AT TIME ZONE 'Africa/Nairobi'
    RETURNING t.user_id, a.counted_on, a.amount
)
INSERT INTO payments_daytotal (user_id, day, amount)
SELECT user_id, counted_on, sum(amount) FROM counted GROUP BY user_id, counted_on ORDER BY user_id
"""


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0016_settlement_failure"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.CreateModel(
            name="DayTotal",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "user_id", "day", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("day", models.DateField()),
                ("amount", models.DecimalField(decimal_places=2, max_digits=16)),
                (
                    "user",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="day_total_is_not_negative")
                ],
            },
        ),
        migrations.AddField(
            model_name="attempt",
            name="counted_on",
            field=models.DateField(help_text="The Nairobi day on which it counts for the member's limit.", null=True),
        ),
        migrations.RunSQL(COUNT_TODAY, migrations.RunSQL.noop),
    ]
