"""Help texts of the models of ledger, settlements, decisions and disputes. The tables do not change."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0012_in_doubt"),
    ]

    operations = [
        migrations.AlterField(
            model_name="certificate",
            name="root",
            field=models.CharField(help_text="Root of the Merkle tree over all bets.", max_length=64),
        ),
        migrations.AlterField(
            model_name="dispute",
            name="due_at",
            field=models.DateTimeField(help_text="The deadline for an operator's answer."),
        ),
        migrations.AlterField(
            model_name="dispute",
            name="settlement",
            field=models.ForeignKey(
                blank=True,
                help_text="The disputed settlement.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="payments.settlement",
            ),
        ),
        migrations.AlterField(
            model_name="ledgeraccount",
            name="code",
            field=models.CharField(
                help_text="wallet:<member>, receivable:<member>, pool:<market>, or the kind itself.", max_length=40
            ),
        ),
        migrations.AlterField(
            model_name="proposal",
            name="closed_market",
            field=models.BooleanField(default=False, help_text="The market was open, and this proposal closed it."),
        ),
        migrations.AlterField(
            model_name="proposal",
            name="words",
            field=models.CharField(
                blank=True, help_text="The reason why it was rejected or became stale.", max_length=300
            ),
        ),
        migrations.AlterField(
            model_name="recovery",
            name="pct",
            field=models.PositiveSmallIntegerField(
                blank=True, help_text="At most this percentage of each later dividend.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="settlement",
            name="bets_done",
            field=models.PositiveBigIntegerField(default=0, help_text="Bets that have their result."),
        ),
        migrations.AlterField(
            model_name="settlement",
            name="release_open",
            field=models.BooleanField(default=False, help_text="The canary passed, so all payouts may be sent."),
        ),
        migrations.AlterField(
            model_name="settlement",
            name="stopped_at",
            field=models.DateTimeField(blank=True, help_text="An undo is proposed, so no payout is sent.", null=True),
        ),
        migrations.AlterField(
            model_name="verdict",
            name="receipt",
            field=models.CharField(blank=True, help_text="Empty if M-Pesa did not pay it.", max_length=64),
        ),
    ]
