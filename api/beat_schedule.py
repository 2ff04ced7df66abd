"""Beat's schedule: the sweeps and the monitoring tasks, with their intervals in seconds."""

Entry = dict[str, object]


def beat_schedule(*, sweep_seconds: int, float_minutes: int) -> dict[str, Entry]:
    """Return the schedule. Sweeps run every `sweep_seconds`, the float's balance query every `float_minutes`."""
    return {
        "settle resolved markets": _every(sweep_seconds, "payments.settlement_tasks.settle_resolved_markets"),
        "send due payouts": _every(sweep_seconds, "payments.settlement_tasks.send_due_payouts", expires=sweep_seconds),
        "apply stored callbacks": _every(sweep_seconds, "payments.settlement_tasks.apply_stored_callbacks"),
        "ask about payouts in doubt": _every(sweep_seconds, "payments.settlement_tasks.ask_about_doubts"),
        "issue certificates": _every(sweep_seconds, "payments.settlement_tasks.issue_certificates"),
        "close remedied disputes": _every(sweep_seconds, "payments.settlement_tasks.close_remedied_disputes"),
        "continue bulk retries": _every(sweep_seconds, "payments.settlement_tasks.continue_bulk_retries"),
        "tell members of new terms": _every(sweep_seconds, "payments.market_tasks.tell_members_of_new_terms"),
        "close ended markets": _every(sweep_seconds, "payments.market_tasks.close_ended_markets"),
        "propose to void markets": _every(60, "payments.market_tasks.propose_to_void_markets"),
        "remind staff of markets": _every(60, "payments.market_tasks.remind_staff_of_markets"),
        "expire proposals": _every(60, "payments.settlement_tasks.expire_proposals"),
        "ask for the float balance": _every(60 * float_minutes, "payments.settlement_tasks.ask_for_the_float"),
        # These tasks keep the names of the module that they were first in, because messages carry the names.
        "record a heartbeat": _every(sweep_seconds, "payments.overview_tasks.heartbeat"),
        "measure the home page's figures": _every(60, "payments.overview_tasks.measure"),
        "sum up new rows": _every(60, "payments.overview_tasks.sum_up"),
        "keep the head of the audit trail": _every(3_600, "payments.overview_tasks.keep_audit_head"),
        "send the head of the audit trail": _every(3_600, "users.audit_tasks.send_audit_head"),
        "check the invariants": _every(30, "payments.overview_tasks.check_books", expires=30),
    }


def _every(seconds: int, task: str, expires: int = 60) -> Entry:
    # A late message is dropped, because the next one does the same work. Messages of the sending task expire after one
    # interval, because it runs for seconds. Other messages live longer: one worker reaches them only between two sends.
    return {"task": task, "schedule": seconds, "options": {"expires": expires}}
