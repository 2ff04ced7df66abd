import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from users import personal

# The trigger gives a secret to each later member. The next migration gives one to the present members, because this one
# holds a lock on the members until its commit.
KEYS = """
CREATE FUNCTION users_give_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO users_memberkey (user_id, secret)
        SELECT id, decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex') FROM added;
    RETURN NULL;
END $$;
CREATE TRIGGER member_gets_a_key AFTER INSERT ON users_customuser
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION users_give_key();
CREATE TRIGGER member_key_is_only_destroyed BEFORE UPDATE ON users_memberkey FOR EACH ROW
    WHEN (NEW.secret IS NOT NULL OR NEW.user_id <> OLD.user_id OR NEW.destroyed_at IS NULL)
    EXECUTE FUNCTION kasoko_refuse('The key of a member is destroyed, not changed.');
CREATE TRIGGER member_key_stays BEFORE DELETE ON users_memberkey
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('The key of a member is destroyed, not deleted.');
"""
# PostgreSQL changes no type of a column that a trigger names, so the trigger goes for a moment and comes back unchanged.
NOTICE_IS_FIXED = """
CREATE TRIGGER notice_is_fixed BEFORE UPDATE OF user_id, kind, subject, event, text, created_at ON users_notice
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('What a member was told is not changed.');
"""
REMOVED = """
DROP TRIGGER member_gets_a_key ON users_customuser;
DROP FUNCTION users_give_key();
"""


class Migration(migrations.Migration):
    dependencies = [("users", "0014_accounts")]

    operations = [
        migrations.CreateModel(
            name="MemberKey",
            fields=[
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("secret", models.BinaryField(null=True)),
                ("destroyed_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.AlterField("auditentry", "reason", personal.SealedTextField(blank=True)),
        migrations.AlterField("membernote", "text", personal.SealedTextField()),
        migrations.RunSQL("DROP TRIGGER notice_is_fixed ON users_notice", migrations.RunSQL.noop),
        migrations.AlterField("notice", "text", personal.SealedTextField()),
        migrations.RunSQL(NOTICE_IS_FIXED, migrations.RunSQL.noop),
        migrations.RunSQL(KEYS, REMOVED),
    ]
