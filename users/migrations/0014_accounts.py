"""Rights over accounts: a role of administrators, and rights over members for support. The hold of a changed phone.

Other roles stay as they are, because an operator may have changed them.
"""

from django.db import migrations, models

from users import roles

NEW = ("change_member", "manage_staff")


def grant(apps, schema_editor):
    content_types = apps.get_model("contenttypes", "ContentType").objects
    member_model, _ = content_types.get_or_create(app_label="users", model="customuser")
    permissions, groups = apps.get_model("auth", "Permission").objects, apps.get_model("auth", "Group").objects
    for codename in NEW:
        permissions.update_or_create(
            content_type=member_model, codename=codename, defaults={"name": roles.PERMISSIONS[codename]}
        )
    administrator, _ = groups.get_or_create(name="administrator")
    administrator.permissions.set(
        permissions.filter(content_type=member_model, codename__in=roles.ROLES["administrator"])
    )
    for support in groups.filter(name="support"):
        support.permissions.add(permissions.get(content_type=member_model, codename="change_member"))


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("users", "0013_api_keys"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="customuser",
            options={"permissions": list(roles.PERMISSIONS.items()), "verbose_name": "member"},
        ),
        migrations.AddField(
            model_name="customuser",
            name="phone_held_until",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.RunPython(grant, migrations.RunPython.noop),
    ]
