"""Waits for answers, and the silence of M-Pesa. The clock is a number."""

import pytest

from payments.payouts.sending.answers import Answers


def answers_after(*waits: float) -> Answers:
    """Return answers in which one request after the other was answered, up to the moment 0."""
    answers = Answers()
    for number, wait in enumerate(waits):
        answers.left(-1 - number, -100.0 - wait)
        answers.ended(-1 - number, is_answer=True, at=-100.0)
    return answers


def test_silence_begins_after_a_second_where_answers_are_fast() -> None:
    # given
    answers = answers_after(0.05, 0.06, 0.05)
    answers.left(1, 10.0)
    answers.left(2, 10.5)

    # then
    assert answers.silence(11.0) is None
    assert answers.silence(11.1) == pytest.approx(1.1)


def test_silence_begins_after_four_usual_waits_where_answers_are_slow() -> None:
    # given: the median is 0.7 seconds
    answers = answers_after(0.6, 0.7, 3.0)
    answers.left(1, 10.0)

    # then
    assert answers.usual == pytest.approx(0.7)
    assert answers.silence(12.8) is None
    assert answers.silence(12.9) == pytest.approx(2.9)


def test_only_the_latest_hundred_waits_count() -> None:
    # given
    answers = answers_after(*[5.0] * 100, *[0.1] * 100)

    # then
    assert answers.usual == pytest.approx(0.1)


def test_slow_request_among_answered_ones_is_no_silence() -> None:
    # given
    answers = Answers()
    answers.left(1, 10.0)
    answers.left(2, 12.0)

    # when
    answers.ended(2, is_answer=True, at=12.1)

    # then
    assert answers.silence(20.0) is None


def test_request_that_ended_without_an_answer_shows_nothing() -> None:
    # given
    answers = Answers()
    answers.left(1, 10.0)
    answers.left(2, 11.0)

    # when: a timeout
    answers.ended(2, is_answer=False, at=15.0)

    # then
    assert answers.usual == 0.0
    assert answers.silence(15.0) == pytest.approx(5.0)


def test_requests_of_a_run_that_was_cut_off_are_forgotten() -> None:
    # given
    answers = answers_after(0.5)
    answers.left(1, 10.0)

    # when
    answers.begin()

    # then
    assert answers.silence(100.0) is None
    assert answers.usual == pytest.approx(0.5)
