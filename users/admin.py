"""Read-only lists of members, roles and notices in the console's Records, and the base class of such lists."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth import admin as auth_admin  # noqa: F401 - it registers Group, which is replaced below
from django.contrib.auth.models import Group
from django.db import DataError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice
from knox.models import AuthToken
from unfold.admin import ModelAdmin

from users import phone
from users.models import CustomUser, Figure, Notice, Proposal

# A login makes a token and shows it once. Staff can neither read nor add a token, so tokens have no page.
admin.site.unregister(AuthToken)
# Nobody may see the secret of a second factor. Its owner sets it up, and a command removes it.
admin.site.unregister(TOTPDevice)
admin.site.unregister(StaticDevice)
admin.site.unregister(Group)


# Columns that may hold a whole phone number. It is shown on the member's page only, where the access is recorded.
_WITH_PHONES = ("phone_number", "reissued_to", "payload")


class ReadOnlyAdmin(ModelAdmin):
    """Pages that show rows and never add, change or delete them. Changes are decisions on the console's own pages."""

    show_full_result_count = False
    actions = None

    def get_exclude(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Leave out the columns that may hold a whole phone number, in addition to those that the page names."""
        named = super().get_exclude(request, obj) or ()
        return [*named, *(name for name in _WITH_PHONES if name not in named)]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list. With a filter that no row can match, such as the year 99999, show the unfiltered list."""
        try:
            with transaction.atomic():
                return super().changelist_view(request, extra_context)
        except (ValueError, OverflowError, DataError, IncorrectLookupParameters):
            return HttpResponseRedirect(request.path)


@admin.register(Group)
class RoleAdmin(ReadOnlyAdmin):
    """Roles of staff. Migrations create the roles that docs/console.md lists; the page Staff gives them."""

    list_display = ("name",)


@admin.register(CustomUser)
class CustomUserAdmin(ReadOnlyAdmin):
    """Members and staff."""

    list_display = ("id", "full_name", "masked_phone", "balance", "is_staff", "is_active", "date_joined")
    list_filter = ("is_staff", "is_active")
    search_fields = ("phone_number", "full_name")
    ordering = ("-pk",)
    exclude = ("password", "user_permissions")
    readonly_fields = ("masked_phone",)

    @admin.display(description="Phone")
    def masked_phone(self, member: CustomUser) -> str:
        return phone.masked(member.phone_number)


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
