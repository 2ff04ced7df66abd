from django.db import migrations

# It locks no member against a change of the balance, so it may take its time on a large table.
FILL = """
INSERT INTO users_memberkey (user_id, secret)
    SELECT id, decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex') FROM users_customuser
    ON CONFLICT DO NOTHING;
"""


class Migration(migrations.Migration):
    dependencies = [("users", "0015_member_keys")]

    operations = [migrations.RunSQL(FILL, migrations.RunSQL.noop)]
