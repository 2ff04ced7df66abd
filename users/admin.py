"""Django admin pages of members, roles and notices, and the base class of read-only pages."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice
from knox.models import AuthToken
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from users.models import CustomUser, Figure, Notice, Proposal

# A login makes a token and shows it once. Staff can neither read nor add a token, so tokens have no page.
admin.site.unregister(AuthToken)
# Nobody may see the secret of a second factor. Its owner sets it up, and a command removes it.
admin.site.unregister(TOTPDevice)
admin.site.unregister(StaticDevice)
admin.site.unregister(Group)


class ReadOnlyAdmin(ModelAdmin):
    """Pages that show rows and never add, change or delete them."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Group)
class RoleAdmin(GroupAdmin, ModelAdmin):
    """Roles of staff. Migrations create the roles that docs/console.md lists."""


class MemberCreationForm(UserCreationForm):
    class Meta:
        model = CustomUser
        fields = ("phone_number", "full_name")


class MemberChangeForm(UserChangeForm):
    class Meta:
        model = CustomUser
        fields = ("phone_number", "full_name", "is_active", "is_staff", "is_superuser", "groups", "user_permissions")


@admin.register(CustomUser)
class CustomUserAdmin(UserAdmin, ModelAdmin):
    """Members and staff. The balance is read-only, because money moves only by transfers."""

    form = MemberChangeForm
    add_form = MemberCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("phone_number", "full_name", "balance", "is_staff", "is_active", "date_joined")
    list_filter = ("is_staff", "is_active")
    search_fields = ("phone_number", "full_name")
    ordering = ("-pk",)
    readonly_fields = ("balance", "public_id", "date_joined", "last_login")
    fieldsets = (
        (None, {"fields": ("phone_number", "password", "full_name", "public_id")}),
        ("Wallet", {"fields": ("balance",)}),
        ("Access", {"fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
        ("History", {"fields": ("date_joined", "last_login")}),
    )
    add_fieldsets = ((None, {"fields": ("phone_number", "full_name", "usable_password", "password1", "password2")}),)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    """Notices to members."""

    list_display = ("created_at", "user", "kind", "text", "sent_at")
    list_filter = ("kind",)
    list_select_related = ("user",)


@admin.register(Proposal)
class ProposalAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "act",
        "subject",
        "amount",
        "state",
        "proposed_by",
        "first_approved_by",
        "decided_by",
        "words",
    )
    list_filter = ("state", "act")
    list_select_related = ("proposed_by", "decided_by")


@admin.register(Figure)
class FigureAdmin(ReadOnlyAdmin):
    list_display = ("name", "value", "valid_from", "source", "certainty", "set_by", "set_at")
    list_select_related = ("set_by",)
