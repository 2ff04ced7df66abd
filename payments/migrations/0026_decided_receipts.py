"""The unique index of decided receipts, apart from the new columns, so that no lock on the table lasts."""

import django.db.models.functions.text
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("payments", "0025_decisions_ranked")]

    operations = [
        migrations.AddConstraint(
            model_name="attempt",
            constraint=models.UniqueConstraint(
                django.db.models.functions.text.Upper("receipt"),
                condition=models.Q(("decision", "paid")),
                name="decided_receipt_once",
            ),
        ),
    ]
