"""Tests of users/models.py: stored phones, and transfers for assigned balances."""

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F

from payments.ledger import journal
from testing import database
from testing.builders import AT, PIN, member, nothing_moved, transfers
from users import phone
from users.models import CustomUser


def stored_balance(user: CustomUser) -> Decimal:
    return CustomUser.objects.values_list("balance", flat=True).get(pk=user.pk)


def money_arrives(user: CustomUser, amount: str, key: str = "deposit:1") -> None:
    """Post a deposit to the wallet. The loaded `user` object keeps its old balance."""
    journal.post([journal.Entry(key, "mpesa_paybill", journal.wallet(user.pk), Decimal(amount))], at=AT)


# --- phones ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["0712345678", "+254712345678", "254-712-345-678", " 712 345 678 "])
def test_phone_is_stored_in_one_form_and_found_by_any_form(db: None, typed: str) -> None:
    user = CustomUser.objects.create_user(phone_number=typed, full_name="Amina", pin=PIN)

    assert user.phone_number == "254712345678"
    assert CustomUser.objects.values_list("phone_number", flat=True).get() == "254712345678"
    assert CustomUser.objects.get(phone_number="0712 345 678") == user
    assert CustomUser.objects.get_by_natural_key("+254 712 345678") == user
    assert list(CustomUser.objects.filter(phone_number__contains="345")) == [user]


def test_second_member_with_same_phone_in_another_form_is_refused(db: None) -> None:
    member(phone_number="0712345678")
    with pytest.raises(IntegrityError), transaction.atomic():
        member(phone_number="+254712345678")


def test_bulk_created_members_get_the_stored_phone_form(db: None) -> None:
    CustomUser.objects.bulk_create([CustomUser(phone_number="0712345678"), CustomUser(phone_number="0112345678")])
    assert set(CustomUser.objects.values_list("phone_number", flat=True)) == {"254712345678", "254112345678"}


def test_invalid_phone_number_creates_no_member(db: None) -> None:
    with pytest.raises(phone.NotAPhoneNumber), transaction.atomic():
        member(phone_number="25407123456")
    assert CustomUser.objects.count() == 0


def test_database_refuses_another_phone_form_by_plain_sql(db: None) -> None:
    user = member()
    sql = "UPDATE users_customuser SET phone_number = '0712345678' WHERE id = %s"
    refused = pytest.raises(IntegrityError, match="phone_is_a_kenyan_mobile")
    with connection.cursor() as cursor, refused, transaction.atomic():
        cursor.execute(sql, [user.pk])


def test_member_as_text_masks_the_phone(db: None) -> None:
    assert str(member(full_name="Amina", phone_number="0712345678")) == "Amina (2547****678)"
    assert str(member(full_name="", phone_number="0112345679")) == "Member (2541****679)"


# --- writing back ----------------------------------------------------------------------------------------------------


def test_object_read_before_a_change_never_writes_the_old_values_back(db: None) -> None:
    user = member(phone_number="0712345678")
    earlier = CustomUser.objects.get(pk=user.pk)
    CustomUser.objects.filter(pk=user.pk).update(phone_number="254712345679", is_active=False, is_staff=True)
    user = CustomUser.objects.get(pk=user.pk)
    user.set_password("7391")
    user.save()

    earlier.full_name = "Written late"
    earlier.save()

    stored = CustomUser.objects.get(pk=user.pk)
    assert stored.check_password("7391")
    assert (stored.phone_number, stored.is_active, stored.is_staff) == ("254712345679", False, True)
    assert stored.full_name == "Written late"


def test_object_that_changed_nothing_writes_nothing(db: None, django_assert_num_queries: Any) -> None:
    user = CustomUser.objects.get(pk=member().pk)
    with django_assert_num_queries(2):  # The savepoint alone.
        user.save()


def test_bulk_created_member_keeps_a_balance_that_moved(db: None) -> None:
    (user,) = CustomUser.objects.bulk_create([CustomUser(phone_number="254712345678", balance=Decimal("10"))])
    money_arrives(user, "50")
    user.full_name = "Renamed"
    user.save()
    assert CustomUser.objects.values_list("full_name", "balance").get() == ("Renamed", 60)


def test_save_after_a_rollback_writes_again(transactional_db: None) -> None:
    user = member(full_name="Old")
    with suppress(ZeroDivisionError), transaction.atomic():
        user.full_name = "New"
        user.save()
        raise ZeroDivisionError
    user.save()
    assert CustomUser.objects.get(pk=user.pk).full_name == "New"

    # and: once it is stored, another person's later change stays
    CustomUser.objects.filter(pk=user.pk).update(full_name="Newest")
    user.save()
    assert CustomUser.objects.get(pk=user.pk).full_name == "Newest"


def test_deferred_column_that_is_read_later_is_not_written_back(db: None) -> None:
    user = CustomUser.objects.only("full_name").get(pk=member(phone_number="0712345678").pk)
    assert user.phone_number == "254712345678"
    CustomUser.objects.filter(pk=user.pk).update(phone_number="254712345679")
    user.full_name = "Renamed"
    user.save()
    assert CustomUser.objects.values_list("phone_number", "full_name").get() == ("254712345679", "Renamed")


# --- the wallet ------------------------------------------------------------------------------------------------------


def test_balances_assigned_by_the_guides_snippet_are_posted(db: None) -> None:
    # given: part 4.1 of the guide
    user1 = CustomUser.objects.create_user(phone_number="254712345678", full_name="User 1", pin="1234")
    user2 = CustomUser.objects.create_user(phone_number="254712345679", full_name="User 2", pin="1234")

    # when
    user1.balance = Decimal("1000")
    user1.save()
    user2.balance = Decimal("2000")
    user2.save()

    # then
    assert transfers() == [
        (f"opening:{user1.pk}:1", "opening", f"wallet:{user1.pk}", Decimal("1000.00")),
        (f"opening:{user2.pk}:1", "opening", f"wallet:{user2.pk}", Decimal("2000.00")),
    ]
    assert (stored_balance(user1), stored_balance(user2)) == (1000, 2000)


def test_repeated_assignment_posts_only_the_differences(db: None) -> None:
    user = member()
    for balance in ("100.50", "40", "40", "0"):
        user.balance = Decimal(balance)
        user.save()

    wallet = f"wallet:{user.pk}"
    assert transfers() == [
        (f"opening:{user.pk}:1", "opening", wallet, Decimal("100.50")),
        (f"opening:{user.pk}:2", wallet, "opening", Decimal("60.50")),
        (f"opening:{user.pk}:3", wallet, "opening", Decimal("40.00")),
    ]
    assert (user.balance, stored_balance(user)) == (0, 0)


def test_saving_a_member_keeps_a_balance_that_moved_since_loading(db: None) -> None:
    user = member(balance=100)
    money_arrives(user, "50")

    with nothing_moved():
        user.full_name = "Renamed"
        user.save()

    assert CustomUser.objects.values_list("full_name", "balance").get() == ("Renamed", 150)


def test_assigning_a_balance_that_moved_posts_difference_to_loaded_value(db: None) -> None:
    # given: the code loaded 100, and 50 more were deposited since
    user = member(balance=100)
    money_arrives(user, "50")

    # when: the code adds ten
    user.balance += 10
    user.save()

    # then: the 50 are kept
    assert stored_balance(user) == 160
    assert user.balance == 160
    assert transfers(code="opening")[-1][-1] == Decimal("10.00")


def test_assigned_expression_applies_to_the_stored_balance(db: None) -> None:
    user = member(balance=100)
    money_arrives(user, "50")

    user.balance = F("balance") + Decimal("5.25")
    user.save()

    assert user.balance == Decimal("155.25")
    user.save()
    assert stored_balance(user) == Decimal("155.25")


def test_assigned_text_and_whole_numbers_become_decimals(db: None) -> None:
    user = member()
    user.balance = 1000
    user.save()
    assert user.balance == Decimal("1000.00")
    user.balance = "12.34"
    user.save()
    assert (user.balance, stored_balance(user)) == (Decimal("12.34"), Decimal("12.34"))


def test_update_fields_moves_the_balance_only_if_named(db: None) -> None:
    user = member(balance=100)

    with nothing_moved():
        user.balance = Decimal(70)
        user.full_name = "Renamed"
        user.save(update_fields=["full_name"])
    user.save(update_fields=["balance"])

    assert (stored_balance(user), CustomUser.objects.get().full_name) == (70, "Renamed")


def test_loading_another_field_keeps_an_assigned_balance(db: None) -> None:
    # given: a balance that is assigned but not saved
    loaded = CustomUser.objects.only("balance").get(pk=member(balance=100).pk)
    loaded.balance = Decimal(250)

    # when: another field is read from the database first
    assert loaded.full_name.startswith("Member")
    loaded.save()

    # then
    assert stored_balance(loaded) == 250


def test_saving_a_deferred_balance_moves_nothing(db: None) -> None:
    user = member(balance=100)

    with nothing_moved():
        deferred = CustomUser.objects.defer("balance").get(pk=user.pk)
        deferred.full_name = "Renamed"
        deferred.save()
    assert CustomUser.objects.get().full_name == "Renamed"


def test_assigned_deferred_balance_becomes_the_balance(db: None) -> None:
    user = member(balance=100)

    deferred = CustomUser.objects.defer("balance").get(pk=user.pk)
    deferred.balance = Decimal(30)
    deferred.save()

    assert stored_balance(user) == 30


def test_bulk_created_and_updated_balances_are_posted(db: None) -> None:
    first, second = CustomUser.objects.bulk_create(
        [
            CustomUser(phone_number="254712345678", balance=Decimal("10")),
            CustomUser(phone_number="254712345679", balance=Decimal("20")),
        ]
    )
    CustomUser.objects.filter(pk=first.pk).update(balance=F("balance") + 5)
    second.balance = Decimal("1.50")
    CustomUser.objects.bulk_update([second], ["balance"])

    assert transfers() == [
        (f"opening:{first.pk}:1", "opening", f"wallet:{first.pk}", Decimal("10.00")),
        (f"opening:{second.pk}:1", "opening", f"wallet:{second.pk}", Decimal("20.00")),
        (f"opening:{first.pk}:2", "opening", f"wallet:{first.pk}", Decimal("5.00")),
        (f"opening:{second.pk}:2", f"wallet:{second.pk}", "opening", Decimal("18.50")),
    ]


def test_negative_balance_is_refused(db: None) -> None:
    user = member(balance=100)
    user.balance = Decimal("-0.01")
    with nothing_moved(), pytest.raises(IntegrityError, match="wallet_is_never_negative"), transaction.atomic():
        user.save()


def test_assigning_a_balance_in_production_is_refused(db: None) -> None:
    user = member(balance=100)

    user.balance = Decimal(200)
    with database.in_production():
        with nothing_moved():
            with pytest.raises(IntegrityError, match="not assigned in production"), transaction.atomic():
                user.save()
            with pytest.raises(IntegrityError, match="not assigned in production"), transaction.atomic():
                CustomUser.objects.update(balance=200)
            with pytest.raises(IntegrityError, match="not assigned in production"), transaction.atomic():
                member(balance=1)

        # and: transfers and saves without a balance still work
        user.refresh_from_db()
        user.full_name = "Renamed"
        user.save()
        money_arrives(user, "5")
        assert stored_balance(user) == 105
