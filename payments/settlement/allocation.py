"""Allocation of a dividend to M-Pesa payments and to the wallet, as SQL."""

# The column that numbers tranches is a smallint.
MOST_TRANCHES = 32_767
# A member's amount is split. Whole shillings go by M-Pesa, in tranches of at most `max`. The wallet gets the rest:
# - the cents;
# - a sum, or a last tranche, under `min`;
# - the part kept for a debt;
# - the part beyond MOST_TRANCHES;
# - everything, if `by_mpesa` is false.
_SPLIT = """
    SELECT won.user_id, amount, {kept} AS kept,
        CASE WHEN NOT %(by_mpesa)s THEN 0
             WHEN mod(fits, %(max)s) >= %(min)s THEN fits ELSE fits - mod(fits, %(max)s) END AS by_mpesa
    FROM won{debtors} CROSS JOIN LATERAL (SELECT least(floor(amount - {kept}), {most} * %(max)s::numeric) AS fits) f"""
_DUE = """
    SELECT user_id, 'mpesa' AS destination, tranche,
        least(%(max)s, by_mpesa - (tranche - 1)::numeric * %(max)s) AS amount
    FROM split, generate_series(1, ceil(by_mpesa / %(max)s)::int) AS tranche
    UNION ALL
    SELECT user_id, 'wallet', 1, amount - by_mpesa FROM split WHERE amount > by_mpesa"""
_DEBTORS = " LEFT JOIN unnest(%(debtors)s::bigint[], %(kept)s::numeric[]) AS k (user_id, kept) USING (user_id)"


def due(won: str, *, debtors: bool) -> str:
    """Build the CTEs `won`, `split` and `due`, to follow a WITH.

    `won` is a query of (user_id, amount). If `debtors` is true, the parameters `debtors` and `kept` give the part of
    each debtor's amount that is kept for debts.
    """
    kept, join = ("coalesce(k.kept, 0)", _DEBTORS) if debtors else ("0", "")
    split = _SPLIT.format(kept=kept, debtors=join, most=MOST_TRANCHES)
    return f"won AS ({won}), split AS ({split}), due AS ({_DUE})"
