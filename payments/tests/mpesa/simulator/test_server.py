"""The simulator as a process: its routes, its book file and its exit."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import requests

from testing.merchants import OTHER_PHONE, PATIENCE_SECONDS, CallbackReceiver, Merchant

ROOT = Path(__file__).resolve().parents[4]


def test_wrong_paths_verbs_and_bodies_have_their_error_codes(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start()
    pay = f"{merchant.base_url}/mpesa/b2c/v3/paymentrequest"

    # when
    answers = [
        merchant.session.get(pay),
        merchant.session.post(f"{merchant.base_url}/mpesa/b2c/v9/paymentrequest", json={}),
        merchant.session.post(pay, data="{}", headers={"Content-Type": "text/plain"}),
        merchant.session.post(pay, data="[" * 30_000, headers={"Content-Type": "application/json"}),
        merchant.session.post(pay, data=b"x" * 70_000, headers={"Content-Type": "application/json"}),
    ]

    # then
    assert [(answer.status_code, answer.json()["errorCode"]) for answer in answers] == [
        (405, "405.001"),
        (404, "404.001.01"),
        (400, "400.002.02"),
        (400, "400.002.05"),
        (400, "400.002.05"),
    ]


def launch(tmp_path: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable,
        "-m",
        "payments.mpesa.simulator",
        "--latency",
        "0",
        "--book",
        str(tmp_path / "book.jsonl"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    running = subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return running, running.stdout.readline().strip()


def end(running: subprocess.Popen[str], number: signal.Signals) -> int:
    running.send_signal(number)
    running.stdout.close()
    return running.wait(PATIENCE_SECONDS)


def test_killed_simulator_continues_from_its_book(tmp_path: Path, receiver: CallbackReceiver) -> None:
    # given
    running, url = launch(
        tmp_path, "--callback-delay", "600", "--float", "1000", "--phone-fault", f"{OTHER_PHONE}=fail:8x1"
    )
    merchant = Merchant(url, receiver)
    accepted = [merchant.pay("A-1").status_code, merchant.pay("A-2", phone=OTHER_PHONE).status_code]
    merchant.session.close()
    end(running, signal.SIGKILL)
    with (tmp_path / "book.jsonl").open("ab") as book:
        book.write(b'{"event":"acce')

    # when
    running, url = launch(tmp_path, "--callback-delay", "0", "--float", "5", "--phone-fault", f"{OTHER_PHONE}=fail:8x1")
    merchant = Merchant(url, receiver)
    results = {body["Result"]["OriginatorConversationID"]: body["Result"] for body in receiver.wait("/result/", 2)}
    duplicate = merchant.pay("A-1")
    merchant.pay("A-3", phone=OTHER_PHONE)
    merchant.finished("A-3")
    totals = merchant.book()["totals"]
    merchant.session.close()
    status = end(running, signal.SIGTERM)

    # then
    assert accepted == [200, 200]
    assert (results["A-1"]["ResultCode"], results["A-2"]["ResultCode"]) == (0, 8)
    assert duplicate.json()["errorCode"] == "500.002.1001"
    assert (totals["paid_count"], totals["paid_total"], totals["float"]) == (2, 570, 430)
    assert status == 0


def test_another_start_has_the_same_book_and_posts_nothing_twice(
    tmp_path: Path, start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    path = tmp_path / "book.jsonl"
    first = start(book=path, fault_rate=0.5, seed=4, fault_names=("fail", "callback_lost", "system_17"))
    for number in range(40):
        first.pay(f"KASOKO-1-{number}-aaaaaaaa-1", phone=f"2547120000{number:02d}")
        first.finished(f"KASOKO-1-{number}-aaaaaaaa-1")
    reported = len(receiver.posts)

    # when
    second = start(book=path)

    # then
    before, after = first.book(), second.book()
    assert after["payments"] == before["payments"]
    assert after["totals"] == before["totals"]
    assert second.sandbox_call("health") == {"status": "ok", "pending": 0}
    assert len(receiver.posts) == reported


def test_process_prints_its_url_and_stops_on_a_signal(tmp_path: Path) -> None:
    # given
    url_file = tmp_path / "url"

    # when
    running, url = launch(tmp_path, "--url-file", str(url_file))
    health = requests.get(f"{url}/sandbox/health", timeout=PATIENCE_SECONDS).json()
    status = end(running, signal.SIGINT)

    # then
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", url)
    assert health == {"status": "ok", "pending": 0}
    assert status == 0
    assert url_file.read_text() == f"{url}\n"


def test_file_that_is_not_a_book_stops_the_start_with_a_reason(tmp_path: Path) -> None:
    # given
    (tmp_path / "book.jsonl").write_text("hello\n")

    # when
    ended = subprocess.run(
        [sys.executable, "-m", "payments.mpesa.simulator", "--book", str(tmp_path / "book.jsonl")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    # then
    assert ended.returncode == 1
    assert "line 1 cannot be read as a line of a simulator's book" in ended.stderr
    assert (tmp_path / "book.jsonl").read_text() == "hello\n"


def test_outage_refuses_payments_counts_them_and_ends(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start()
    outage = f"{merchant.base_url}/sandbox/outage"
    assert merchant.session.post(outage, json={"kind": "flood"}).status_code == 400

    # when
    merchant.session.post(outage, json={"kind": "refused"})
    refused = merchant.session.post(f"{merchant.base_url}/mpesa/b2c/v3/paymentrequest", json={})
    query = merchant.session.post(f"{merchant.base_url}/mpesa/transactionstatus/v1/query", json={})
    arrived = merchant.session.get(outage).json()
    merchant.session.post(outage, json={"kind": None})

    # then
    assert refused.json()["errorMessage"] == "Bad Request - Invalid InitiatorName"
    assert "InitiatorName" not in query.text
    assert arrived == {"arrived": 1}
    after = merchant.session.post(f"{merchant.base_url}/mpesa/b2c/v3/paymentrequest", json={})
    assert after.json()["errorMessage"] != "Bad Request - Invalid InitiatorName"
