"""Allocation of a dividend to M-Pesa payments and to the wallet, as SQL."""

# Tranches are numbered by a smallint.
MOST_TRANCHES = 32_767
# The amount that a member has won is split. Whole shillings go by M-Pesa in tranches of at most `max`. The wallet gets
# the cents, a sum or a last tranche under `min`, the part kept for a debt, and the part beyond MOST_TRANCHES. It gets
# everything if `by_mpesa` is false.
_CARRIED = """
    SELECT won.user_id, amount, {kept} AS kept,
        CASE WHEN NOT %(by_mpesa)s THEN 0
             WHEN mod(fits, %(max)s) >= %(min)s THEN fits ELSE fits - mod(fits, %(max)s) END AS by_mpesa
    FROM won{debtors} CROSS JOIN LATERAL (SELECT least(floor(amount - {kept}), {most} * %(max)s::numeric) AS fits) f"""
_DUE = """
    SELECT user_id, 'mpesa' AS destination, tranche,
        least(%(max)s, by_mpesa - (tranche - 1)::numeric * %(max)s) AS amount
    FROM carried, generate_series(1, ceil(by_mpesa / %(max)s)::int) AS tranche
    UNION ALL
    SELECT user_id, 'wallet', 1, amount - by_mpesa FROM carried WHERE amount > by_mpesa"""
_DEBTORS = " LEFT JOIN unnest(%(debtors)s::bigint[], %(kept)s::numeric[]) AS k (user_id, kept) USING (user_id)"


def due(won: str, *, debtors: bool) -> str:
    """Build the CTEs `won`, `carried` and `due`, to follow a WITH.

    `won` is a query of (user_id, amount). With `debtors` a part is kept for debts (parameters `debtors` and `kept`).
    """
    kept, join = ("coalesce(k.kept, 0)", _DEBTORS) if debtors else ("0", "")
    carried = _CARRIED.format(kept=kept, debtors=join, most=MOST_TRANCHES)
    return f"won AS ({won}), carried AS ({carried}), due AS ({_DUE})"
