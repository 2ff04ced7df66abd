"""Public ids of markets, from which the references of payouts are derived.

PostgreSQL computes a new id for each existing row. The table of markets is small, so rewriting it takes little time.
"""

import uuid

import django.contrib.postgres.functions
from django.db import migrations, models

# A payout's reference depends on both ids. With another id a debt would get a second reference, and be paid twice.
GUARDS = """
CREATE TRIGGER market_public_id_stays AFTER UPDATE OF public_id ON markets_market
    FOR EACH ROW WHEN (OLD.public_id IS DISTINCT FROM NEW.public_id)
    EXECUTE FUNCTION kasoko_refuse('The public id of a market is not changed.');
CREATE TRIGGER member_public_id_stays AFTER UPDATE OF public_id ON users_customuser
    FOR EACH ROW WHEN (OLD.public_id IS DISTINCT FROM NEW.public_id)
    EXECUTE FUNCTION kasoko_refuse('The public id of a member is not changed.');
"""
UNGUARDED = """
DROP TRIGGER market_public_id_stays ON markets_market;
DROP TRIGGER member_public_id_stays ON users_customuser;
"""


class Migration(migrations.Migration):
    dependencies = [("markets", "0004_tallies"), ("users", "0006_permission_names")]
    operations = [
        migrations.AddField(
            model_name="market",
            name="public_id",
            field=models.UUIDField(
                db_default=django.contrib.postgres.functions.RandomUUID(),
                default=uuid.uuid4,
                editable=False,
                unique=True,
            ),
        ),
        migrations.RunSQL(GUARDS, UNGUARDED),
    ]
