"""An index for the deletion of old day totals."""

import django.contrib.postgres.indexes
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("payments", "0031_withdrawn_scratches")]
    operations = [
        migrations.AddIndex(
            model_name="daytotal",
            index=django.contrib.postgres.indexes.BrinIndex(
                fields=["day"], name="day_total_by_day", pages_per_range=16
            ),
        ),
    ]
