"""The stop of a release whose first payouts ended badly."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0026_decided_receipts"),
    ]

    operations = [
        migrations.AddField(
            model_name="settlement",
            name="canary_stop_reason",
            field=models.CharField(blank=True, db_default="", max_length=300),
        ),
        migrations.AddField(
            model_name="settlement",
            name="canary_stopped_at",
            field=models.DateTimeField(
                blank=True, help_text="Its first payouts ended badly, so the others wait for a person.", null=True
            ),
        ),
    ]
