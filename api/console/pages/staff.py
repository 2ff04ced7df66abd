"""Pages of accounts: the list of staff, and the changes of one account of staff or of a member."""

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse

from api.console import page, paging
from payments import wiring
from users import accounts, phone, proposals, roles, second_factor
from users.models import CustomUser, Proposal

ROLE_CHOICES = [(accounts.NO_ROLE, "none: no member of staff"), *((name, name) for name in roles.ROLES)]
# Title, effects and fields of each change.
TITLES = {
    accounts.ROLE: "Change the role",
    accounts.SUSPEND: "Suspend the account",
    accounts.REINSTATE: "Reinstate the account",
    accounts.UNLOCK: "Unlock the account",
    accounts.RESET_PIN: "Set a new PIN",
    accounts.RESET_APP: "Remove the authenticator app",
    accounts.PHONE: "Change the phone",
}
EFFECTS = {
    accounts.ROLE: ["The person has the rights of the new role only, and must log in again."],
    accounts.SUSPEND: [
        "The person cannot log in. All sessions and tokens end at once.",
        "Money that the person has won is still paid.",
    ],
    accounts.REINSTATE: ["The person may log in again with the PIN."],
    accounts.UNLOCK: ["The person may try to log in again at once."],
    accounts.RESET_PIN: ["The person who approves sees the new PIN once, and tells it to the member."],
    accounts.RESET_APP: [
        "The old app and its recovery codes end.",
        "The person sets up a new app at the next login, with a code that the person who approves sees once.",
    ],
    accounts.PHONE: [
        "Later winnings go to the new number. No money leaves to it for some time, and the member is told.",
        "Payouts that are under way still go to the old number.",
    ],
}
SECOND_PERSON = "Another person must approve this. Until then nothing changes."
REASON = page.Field("reason", "Reason", kind="area", help="Shown in the audit trail.")


@page.page("staff.view")
def staff(request: HttpRequest) -> HttpResponse:
    """List the members of staff with their roles, and the changes that wait for approval."""
    rows = CustomUser.objects.filter(is_staff=True).prefetch_related("groups").order_by("full_name", "pk")
    paged = paging.paged(request, rows)
    enrolled = second_factor.all_enrolled([person.pk for person in paged.rows])
    context = {
        "title": "Staff",
        "paged": paged,
        "people": [(person, accounts.role_of(person), person.pk in enrolled) for person in paged.rows],
        "waiting": _waiting(),
        "may_change": page.may(request, "staff.role"),
    }
    return page.render(request, "console/staff.html", context)


def _waiting() -> list[tuple[Proposal, str]]:
    """Return the open proposals about staff accounts, each in words."""
    rows = Proposal.objects.filter(state=Proposal.State.OPEN, act__startswith="staff.").select_related("proposed_by")
    people = CustomUser.objects.in_bulk({row.subject_id for row in rows})
    return [(row, f"{TITLES[row.act.partition('.')[2]]}: {people.get(row.subject_id, row.subject)}") for row in rows]


@page.page("staff.role", posts=True)
def add(request: HttpRequest) -> HttpResponse:
    """Add a member of staff: a phone, a name and one role."""
    question = page.Question(
        title="Add a member of staff",
        effects=[
            "The person gets a new PIN, also in place of a member's PIN. The person who approves sees it once.",
            SECOND_PERSON,
        ],
        button="Propose this person",
        back=reverse("admin:staff"),
        fields=[
            page.Field("phone_number", "Phone number", kind="tel", max_length=20),
            page.Field("full_name", "Full name", max_length=120),
            page.Field("role", "Role", choices=[("", "choose"), *ROLE_CHOICES[1:]]),
            REASON,
        ],
    )

    def act(answers: dict[str, str]) -> str:
        try:
            done = accounts.add_staff(**answers, by=page.actor(request), at=wiring.now())
        except phone.NotAPhoneNumber as refusal:
            raise accounts.ChangeRefused(f"Phone number: {refusal}") from refusal
        return report(done)

    return page.ask(request, question, act)


def _change(act_name: str) -> page.View:
    verb = act_name.partition(".")[2]

    @page.page(act_name, posts=True)
    def change(request: HttpRequest, member_id: int) -> HttpResponse:
        """Change one account, or propose the change."""
        member = _account(member_id)
        person = member.full_name or f"member {member.pk}"
        takes_two = verb not in (accounts.SUSPEND, accounts.UNLOCK)
        fields = {
            accounts.ROLE: [page.Field("value", "Role", choices=ROLE_CHOICES, value=accounts.role_of(member))],
            accounts.PHONE: [page.Field("value", "New phone number", kind="tel", max_length=20)],
        }.get(verb, [])
        question = page.Question(
            title=f"{TITLES[verb]} of {person}",
            effects=[*EFFECTS[verb], *([SECOND_PERSON] if takes_two else [])],
            facts=[("Account", str(member)), ("Role", accounts.role_of(member))],
            button=TITLES[verb],
            back=reverse("admin:member", args=[member.pk]),
            fields=[*fields, REASON],
            danger=True,
        )

        def act(answers: dict[str, str]) -> str:
            by, at, reason = page.actor(request), wiring.now(), answers["reason"]
            if verb == accounts.SUSPEND:
                accounts.suspend(act=act_name, member_id=member.pk, reason=reason, by=by, at=at)
                return f"{person} is suspended. All sessions and tokens have ended."
            if verb == accounts.UNLOCK:
                accounts.unlock(act=act_name, member_id=member.pk, reason=reason, by=by, at=at)
                return f"{person} may try to log in again."
            value = answers.get("value", "")
            try:
                value = phone.normalise(value) if verb == accounts.PHONE else value
            except phone.NotAPhoneNumber as refusal:
                raise accounts.ChangeRefused(f"New phone number: {refusal}") from refusal
            change = accounts.Change(act_name, member.pk, reason, value)
            return report(accounts.propose(change, by=by, at=at, hold=wiring.policy().phone_change_hold))

        return page.ask(request, question, act)

    return change


def report(done: proposals.Proposed | accounts.Changed) -> str:
    """Return the result of a change in words."""
    if isinstance(done, proposals.Proposed):
        link = reverse("admin:proposal", args=[done.proposal_id])
        return f"Proposed. Another person must approve it at this address: {link}"
    if not done.secret:
        return "Done."
    name = "enrolment code" if done.act.endswith(accounts.RESET_APP) else "new PIN"
    return f"Done. The {name} is {done.secret}. It is shown only now: tell it to the person."


def actions(request: HttpRequest, member: CustomUser) -> list[tuple[str, str]]:
    """Return the title and address of each change of an account that the person may make or propose."""
    if member.pk == request.user.pk:
        return []
    verbs = [accounts.PHONE, accounts.RESET_PIN, accounts.UNLOCK]
    verbs.append(accounts.SUSPEND if member.is_active else accounts.REINSTATE)
    verbs += (
        [accounts.ROLE, *([accounts.RESET_APP] if second_factor.enrolled(member) else [])] if member.is_staff else []
    )
    acts = [(verb, accounts.act_of(verb, member)) for verb in verbs]
    return [
        (TITLES[verb], reverse(f"admin:{_url_name(act_name)}", args=[member.pk]))
        for verb, act_name in acts
        if page.may(request, act_name)
    ]


def _account(member_id: int) -> CustomUser:
    member = CustomUser.objects.filter(pk=member_id).first() if member_id <= paging.LARGEST_ID else None
    if member is None:
        raise Http404(f"There is no member {member_id}.")
    return member


def _url_name(act_name: str) -> str:
    """Return the URL name of an act's page. The page member_phone shows a phone; this one changes it."""
    kind, _, verb = act_name.partition(".")
    return f"{kind}_{'change_phone' if verb == accounts.PHONE else verb}"


def _path(act_name: str) -> URLPattern:
    kind, _, verb = _url_name(act_name).partition("_")
    folder = "members" if kind == "member" else kind
    return path(f"{folder}/<int:member_id>/{verb.replace('_', '-')}/", _change(act_name), name=_url_name(act_name))


_OF_STAFF_ONLY = (accounts.ROLE, accounts.RESET_APP)
_ACTS = [f"staff.{verb}" for verb in TITLES] + [f"member.{verb}" for verb in TITLES if verb not in _OF_STAFF_ONLY]
urls = [
    path("staff/", staff, name="staff"),
    path("staff/add/", add, name="staff_add"),
    *(_path(act_name) for act_name in _ACTS),
]
