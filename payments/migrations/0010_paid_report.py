"""The column for reports of payment, which `result_code` held until now as "0" (trusted) and "0?" (untrusted)."""

from django.db import migrations, models

FILL = """
UPDATE payments_attempt
SET paid_report = CASE result_code WHEN '0' THEN 'trusted' ELSE 'untrusted' END, result_code = '0'
WHERE result_code IN ('0', '0?');
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0009_sent_again")]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="paid_report",
            field=models.CharField(
                blank=True,
                choices=[("", "none"), ("untrusted", "Untrusted"), ("trusted", "Trusted")],
                db_default="",
                default="",
                help_text="Whether a callback reported a payment, and whether we trust its sender.",
                max_length=9,
            ),
        ),
        migrations.RunSQL(FILL, migrations.RunSQL.noop),
    ]
