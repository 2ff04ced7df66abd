"""The reason of a failed settlement, and the withdrawal of a division that found its books wrong."""

from django.db import migrations, models

GUARDS = """
CREATE OR REPLACE TRIGGER settlement_moves BEFORE UPDATE OF state ON payments_settlement
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state',
        'PENDING>DIVIDING PENDING>WITHDRAWN DIVIDING>SETTLED DIVIDING>UNDOING SETTLED>UNDOING UNDOING>UNDONE');
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0015_more_breakers")]
    operations = [
        migrations.AddField(
            model_name="settlement",
            name="failure",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Why its last step failed. Empty once a later step has completed the settlement.",
                max_length=300,
            ),
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
