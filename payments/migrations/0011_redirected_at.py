"""The column for payouts that were paid into the wallet instead, which the figures found by their reason until now."""

from django.db import migrations, models

FILL = """
UPDATE payments_transaction t SET redirected_at = f.at
FROM payments_transfer f
WHERE t.status = 'COMPLETED' AND t.reason LIKE 'Paid into the wallet%' AND f.key = 'redirect:' || t.id;
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0010_paid_report")]

    operations = [
        migrations.AddField(
            model_name="transaction",
            name="redirected_at",
            field=models.DateTimeField(
                blank=True, help_text="When it was paid into the wallet instead of over M-Pesa.", null=True
            ),
        ),
        migrations.RunSQL(FILL, migrations.RunSQL.noop),
    ]
