"""A payment that a payout took over from `suspense` counts as its payment when the payout is held again."""

from django.db import migrations

FUNCTION = """
CREATE OR REPLACE FUNCTION payments_require_payment_taken_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM payments_transfer f WHERE f.transaction_id = NEW.id AND f.code = 'redirect')
       OR (SELECT count(*) FILTER (WHERE f.code IN ({codes})
               AND NOT EXISTS (SELECT FROM payments_transfer r WHERE r.key = 'reverse:' || f.id))
               <> count(*) FILTER (WHERE f.code = 'returned')
           FROM payments_transfer f WHERE f.transaction_id = NEW.id) THEN
        RAISE EXCEPTION 'A completed payout is held again only with the transfers that take its payment back.'
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0027_canary_stops")]

    operations = [
        migrations.RunSQL(FUNCTION.format(codes="'paid', 'claimed'"), FUNCTION.format(codes="'paid'")),
    ]
