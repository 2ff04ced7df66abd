"""Requests that may have left before a restore and are asked about: their numbers, and supposed orphans."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0028_claimed_payments_taken_back"),
    ]

    operations = [
        migrations.AddField(
            model_name="askfirst",
            name="last_number",
            field=models.PositiveSmallIntegerField(
                db_default=0, default=0, help_text="The highest number that a lost request of this payout may have."
            ),
        ),
        migrations.AddField(
            model_name="askfirst",
            name="later_asked_at",
            field=models.DateTimeField(
                blank=True, help_text="When M-Pesa began to be asked about its further requests.", null=True
            ),
        ),
        migrations.AddField(
            model_name="orphan",
            name="is_supposed",
            field=models.BooleanField(db_default=False, default=False),
        ),
    ]
