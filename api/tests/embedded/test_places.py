"""The directories of data and passwords, and their permissions."""

import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from api import embedded
from api.embedded import places, processes
from testing.embedded_checkouts import Checkout, MakeCheckout, owner_sql

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("profile", ["durable", "fast"])
def test_data_and_passwords_are_closed_to_other_users(checkouts: MakeCheckout, profile: embedded.Profile) -> None:
    # given
    checkout = checkouts("checkout", profile)
    checkout.use()
    account = processes.server_account()

    # then only the servers' user can open the data, and only the checkout's owner the passwords
    def owner_and_mode(path: Path) -> tuple[int, str]:
        status = path.stat()
        return status.st_uid, oct(stat.S_IMODE(status.st_mode))

    for directory in (checkout.base_dir / ".kasoko", checkout.state):
        assert owner_and_mode(directory) == (os.geteuid(), "0o711" if account else "0o700")
    assert owner_and_mode(checkout.state / "secrets.json") == (os.geteuid(), "0o600")
    engines = [path for path in checkout.state.iterdir() if re.fullmatch("(postgresql|valkey|redis)[0-9]+", path.name)]
    assert len(engines) == 2
    for directory in engines:
        assert owner_and_mode(directory) == (account.pw_uid if account else os.geteuid(), "0o700")


def test_copied_checkout_has_the_data_and_then_its_own_changes(checkout: Checkout, checkouts: MakeCheckout) -> None:
    # given a copy made while the servers were down. Root's plain copy belongs to root
    owner_sql(checkout.use("postgres"), "create table survivors as select 1 as one")
    checkout.leave()
    shutil.copytree(checkout.base_dir, checkout.base_dir.with_name("copy"))
    copy = checkouts("copy")

    # when both run and the copy changes
    original_urls, copy_urls = checkout.use("postgres"), copy.use("postgres")
    owner_sql(copy_urls, "update survivors set one = 2")

    # then
    assert owner_sql(original_urls, "select one from survivors") == [(1,)]
    assert owner_sql(copy_urls, "select one from survivors") == [(2,)]


Enclose = Callable[[embedded.Profile], Checkout]


class TestRootInAPrivateDirectory:
    pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as another user")

    @pytest.fixture
    def enclosed(self, checkouts: MakeCheckout) -> Enclose:
        def make(profile: embedded.Profile) -> Checkout:
            checkout = checkouts("private/checkout", profile)
            checkout.base_dir.parent.chmod(0o700)
            return checkout

        return make

    def test_closed_checkout_has_its_data_elsewhere(self, enclosed: Enclose) -> None:
        # when
        checkout = enclosed("durable")
        owner_sql(checkout.use(), "create table survivors as select 1 as one")
        place = checkout.place
        checkout.leave()

        # then
        assert place.parent == places.ROOT_PLACE
        assert stat.S_IMODE(checkout.base_dir.parent.stat().st_mode) == 0o700
        assert not list(checkout.state.glob("postgresql*"))
        assert owner_sql(checkout.use(), "select one from survivors") == [(1,)]

    def test_fast_profile_leaves_nothing_behind(self, enclosed: Enclose) -> None:
        # given
        checkout = enclosed("fast")
        owner_sql(checkout.use(), "create table survivors as select 1 as one")
        place = checkout.place
        assert place.is_dir()

        # when
        checkout.leave()

        # then the directory is gone, and the next run starts empty
        assert not place.exists()
        assert owner_sql(checkout.use(), "select to_regclass('survivors')") == [(None,)]

    def test_erasing_a_copy_keeps_the_original(self, enclosed: Enclose) -> None:
        # given
        checkout = enclosed("durable")
        owner_sql(checkout.use("postgres"), "create table survivors as select 1 as one")
        checkout.leave()
        copy = checkout.base_dir.with_name("copy")
        shutil.copytree(checkout.base_dir, copy)

        # when
        embedded.erase(copy, "durable")

        # then
        assert owner_sql(checkout.use("postgres"), "select one from survivors") == [(1,)]

    def test_moved_checkout_brings_its_data(self, checkout: Checkout, enclosed: Enclose) -> None:
        # given data in a checkout that every user may enter
        owner_sql(checkout.use("postgres"), "create table survivors as select 1 as one")
        checkout.leave()
        moved = enclosed("durable")

        # when
        (checkout.base_dir / ".kasoko").rename(moved.base_dir / ".kasoko")

        # then
        assert owner_sql(moved.use("postgres"), "select one from survivors") == [(1,)]
