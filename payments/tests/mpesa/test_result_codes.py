"""B2C result codes: the definite codes, the side at fault, and the use of a retry."""

import pytest

from payments.mpesa import result_codes


def test_only_listed_codes_are_definite() -> None:
    definite = {code for code, meaning in result_codes.MEANING.items() if meaning.definite}

    assert definite == {"1", "2", "3", "4", "8", "11", "21", "2001", "2006", "2028", "2040", "8006", "SFC_IC0003"}


def test_each_definite_code_is_our_fault_or_the_members() -> None:
    faults = {code: meaning.fault for code, meaning in result_codes.MEANING.items() if meaning.definite}

    assert {code for code, fault in faults.items() if fault == "ours"} == {
        "1", "21", "2001", "8006", "2006", "2028", "11"
    }  # fmt: skip
    assert {code for code, fault in faults.items() if fault == "member"} == {"2", "3", "4", "8", "2040", "SFC_IC0003"}


@pytest.mark.parametrize("code", ["0", "15", "17", "26", "41", "45", "49", "100000000", "999", "", "sfc_ic0003"])
def test_every_other_code_is_in_doubt(code: str) -> None:
    meaning = result_codes.meaning(code)

    assert (meaning.definite, meaning.fault) == (False, "unknown")
    assert meaning.words
    assert meaning.advice


def test_retry_does_not_help_a_wrong_number_or_amount() -> None:
    hopeless = {code for code, meaning in result_codes.MEANING.items() if not meaning.retry_helps}

    assert hopeless == {"2", "3", "2040", "SFC_IC0003"}


@pytest.mark.parametrize("code", ["4", "8"])
def test_retry_helps_once_a_members_limit_allows(code: str) -> None:
    assert result_codes.meaning(code).retry_helps is True
