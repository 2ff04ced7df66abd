from django.conf import settings
from django.db import migrations, models

# A change of the PIN, a suspension and the loss of a right end the member's sessions, tokens and known devices, whoever
# makes the change: a page, a command, the shell or SQL. A session's hash includes the epoch; tokens are deleted.
TRIGGERS = """
CREATE FUNCTION users_end_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- An object that was read before must not bring an older epoch back.
    NEW.session_epoch := greatest(OLD.session_epoch, NEW.session_epoch);
    IF OLD.password IS DISTINCT FROM NEW.password OR (OLD.is_active AND NOT NEW.is_active)
        OR (OLD.is_staff AND NOT NEW.is_staff) OR (OLD.is_superuser AND NOT NEW.is_superuser) THEN
        NEW.session_epoch := greatest(OLD.session_epoch + 1, NEW.session_epoch);
    END IF;
    IF NEW.session_epoch > OLD.session_epoch THEN
        DELETE FROM users_tokenproof WHERE token_id IN (SELECT digest FROM knox_authtoken WHERE user_id = NEW.id);
        DELETE FROM knox_authtoken WHERE user_id = NEW.id;
        DELETE FROM users_knownaddress WHERE user_id = NEW.id;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER end_sessions BEFORE UPDATE OF password, is_active, is_staff, is_superuser, session_epoch
ON users_customuser FOR EACH ROW EXECUTE FUNCTION users_end_sessions();

CREATE FUNCTION users_end_sessions_of_lost_role() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE users_customuser SET session_epoch = session_epoch + 1 WHERE id = OLD.customuser_id;
    RETURN NULL;
END $$;

CREATE TRIGGER end_sessions AFTER DELETE OR UPDATE ON users_customuser_groups
FOR EACH ROW EXECUTE FUNCTION users_end_sessions_of_lost_role();
CREATE TRIGGER end_sessions AFTER DELETE OR UPDATE ON users_customuser_user_permissions
FOR EACH ROW EXECUTE FUNCTION users_end_sessions_of_lost_role();
"""
BACK = """
DROP TRIGGER end_sessions ON users_customuser_user_permissions;
DROP TRIGGER end_sessions ON users_customuser_groups;
DROP TRIGGER end_sessions ON users_customuser;
DROP FUNCTION users_end_sessions_of_lost_role();
DROP FUNCTION users_end_sessions();
"""


class Migration(migrations.Migration):
    dependencies = [("users", "0008_token_proofs")]

    operations = [
        migrations.CreateModel(
            name="PinCounter",
            fields=[
                ("key", models.CharField(max_length=80, primary_key=True, serialize=False)),
                ("wrong", models.PositiveIntegerField()),
                ("until", models.DateTimeField()),
            ],
            options={"indexes": [models.Index(fields=["until"], name="pin_counter_by_age")]},
        ),
        migrations.CreateModel(
            name="KnownAddress",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("address", models.CharField(max_length=32)),
                ("last_at", models.DateTimeField()),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=models.CASCADE, related_name="known_addresses", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={"constraints": [models.UniqueConstraint(fields=("user", "address"), name="known_address_once")]},
        ),
        migrations.RemoveField(model_name="customuser", name="failed_logins"),
        migrations.RemoveField(model_name="customuser", name="locked_until"),
        migrations.AddField(
            model_name="customuser",
            name="session_epoch",
            field=models.PositiveIntegerField(db_default=0, default=0, editable=False),
        ),
        migrations.RunSQL(TRIGGERS, BACK),
    ]
