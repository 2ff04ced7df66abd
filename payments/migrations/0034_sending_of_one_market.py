"""The suspension of one market's payouts by a person."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0033_numbers_and_addresses")]

    operations = [
        migrations.AddField(
            model_name="settlement",
            name="sending_suspended_at",
            field=models.DateTimeField(
                blank=True, help_text="Since then a person suspends the sending of its payouts.", null=True
            ),
        ),
    ]
