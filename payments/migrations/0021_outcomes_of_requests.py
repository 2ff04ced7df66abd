"""Index on the outcomes of requests, in the order in which they were learned."""

from django.db import migrations, models
from django.db.models.functions import Coalesce


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0020_receivers_and_holds"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="attempt",
            index=models.Index(
                Coalesce("closed_at", "doubted_at"),
                condition=models.Q(("closed_at__isnull", False), ("doubted_at__isnull", False), _connector="OR"),
                name="attempt_outcome",
            ),
        ),
    ]
