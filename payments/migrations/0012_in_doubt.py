"""The index on attempts in doubt, now with those that are being sent again while in doubt."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0011_redirected_at")]

    operations = [
        migrations.RemoveIndex(model_name="attempt", name="attempt_in_doubt"),
        migrations.AddIndex(
            model_name="attempt",
            index=models.Index(
                condition=models.Q(
                    ("state", "IN_DOUBT"),
                    models.Q(
                        ("doubted_at__isnull", False),
                        ("state__in", ["SENDING", "WAITING", "ACCEPTED", "IN_DOUBT"]),
                    ),
                    _connector="OR",
                ),
                fields=["first_sent_at", "id"],
                name="attempt_in_doubt",
            ),
        ),
    ]
