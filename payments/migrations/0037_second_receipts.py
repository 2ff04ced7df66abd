"""The second receipt of a request, about which M-Pesa is asked before it is booked."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0036_database_guards")]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="second_receipt",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="A further receipt that M-Pesa reported, while a status query must confirm it.",
                max_length=64,
            ),
        ),
    ]
