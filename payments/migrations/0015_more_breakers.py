"""Breakers for our settings and products, for silence, and two stops that a person ends."""

from django.db import migrations, models

# The order of the ids is the order in which breakers are locked. A missing row is also made when it first opens.
ROWS = """
INSERT INTO payments_breaker (cause, probes, reason)
    SELECT cause, 0, ''
    FROM unnest(ARRAY['settings', 'product', 'silence', 'orphan', 'restore']) WITH ORDINALITY AS new (cause, place)
    ORDER BY place
    ON CONFLICT (cause) DO NOTHING;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0014_payout_help_texts"),
    ]

    operations = [
        migrations.AddField(
            model_name="breaker",
            name="closed_at",
            field=models.DateTimeField(
                blank=True,
                help_text="When it was last closed. Requests POSTed before do not open it again.",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="breaker",
            name="cause",
            field=models.CharField(
                choices=[
                    ("switch", "Switch"),
                    ("no_float", "No Float"),
                    ("credentials", "Credentials"),
                    ("throttle", "Throttle"),
                    ("network", "Network"),
                    ("doubt", "Doubt"),
                    ("failures", "Failures"),
                    ("settings", "Settings"),
                    ("product", "Product"),
                    ("silence", "Silence"),
                    ("orphan", "Orphan"),
                    ("restore", "Restore"),
                ],
                max_length=12,
                unique=True,
            ),
        ),
        migrations.RunSQL(ROWS, migrations.RunSQL.noop),
    ]
