"""Help texts of the payout columns in plain English. The tables do not change."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0013_help_texts"),
    ]

    operations = [
        migrations.AlterField(
            model_name="attempt",
            name="doubted_at",
            field=models.DateTimeField(help_text="When the result of a POST was first in doubt.", null=True),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="first_sent_at",
            field=models.DateTimeField(help_text="When a POST that may have left us was first made.", null=True),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="known_at",
            field=models.DateTimeField(
                help_text="When M-Pesa said that it already has this id, which is then never sent again.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="next_query_at",
            field=models.DateTimeField(help_text="When the next status query is due.", null=True),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="posted_at",
            field=models.DateTimeField(help_text="When it was last POSTed.", null=True),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="resend_at",
            field=models.DateTimeField(help_text="When the same id is sent again although it is in doubt.", null=True),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="settlement",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                help_text="The settlement of its transaction, stored here to count a release without reading transactions.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="payments.settlement",
            ),
        ),
        migrations.AlterField(
            model_name="breaker",
            name="probes",
            field=models.PositiveIntegerField(default=0, help_text="Probes sent since it opened."),
        ),
        migrations.AlterField(
            model_name="callback",
            name="originator_conversation_id",
            field=models.CharField(
                blank=True, help_text="The id of a request that we sent but do not have.", max_length=36
            ),
        ),
        migrations.AlterField(
            model_name="callback",
            name="trusted",
            field=models.BooleanField(help_text="It came from one of M-Pesa's addresses."),
        ),
        migrations.AlterField(
            model_name="callback",
            name="verdict",
            field=models.CharField(blank=True, help_text="The outcome in words.", max_length=200),
        ),
        migrations.AlterField(
            model_name="transaction",
            name="due_at",
            field=models.DateTimeField(help_text="It is not sent before this time."),
        ),
        migrations.AlterField(
            model_name="transaction",
            name="reason",
            field=models.CharField(blank=True, help_text="Why it failed, is held or waits.", max_length=300),
        ),
        migrations.AlterField(
            model_name="transaction",
            name="receipt",
            field=models.CharField(blank=True, help_text="M-Pesa's receipt of the payment.", max_length=64),
        ),
    ]
