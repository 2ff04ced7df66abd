"""Bulk retries of failed payouts, with their progress."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0022_orphans"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="BulkRetry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "code",
                    models.CharField(
                        blank=True, help_text="The result code of the last request; empty: any.", max_length=20
                    ),
                ),
                ("market_id", models.BigIntegerField(help_text="Empty: any market.", null=True)),
                (
                    "since",
                    models.DateTimeField(help_text="The earliest time of the failure. Empty: any time.", null=True),
                ),
                ("started_at", models.DateTimeField()),
                ("started_from", models.CharField(max_length=64)),
                ("last_id", models.BigIntegerField(default=0)),
                ("chosen", models.PositiveIntegerField(help_text="Failed payouts of the choice when it started.")),
                ("retried", models.PositiveIntegerField(default=0)),
                ("skipped", models.PositiveIntegerField(default=0)),
                ("finished_at", models.DateTimeField(null=True)),
                (
                    "started_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "bulk retries",
                "indexes": [
                    models.Index(
                        condition=models.Q(("finished_at__isnull", True)), fields=["id"], name="bulk_retry_unfinished"
                    )
                ],
            },
        ),
    ]
