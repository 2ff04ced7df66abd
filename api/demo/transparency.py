"""The public side of a settlement: a certificate that a separate script verifies, and one explanation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.conf import settings

from api.demo.client import Client
from api.demo.screen import Screen, money


def show(client: Client, screen: Screen, market_id: int, member: tuple[str, str], directory: Path) -> list[str]:
    """Fetch, save and verify a market's certificate and the explanation of a member's latest bet.

    `member` is a name and a token. Returns the differences; an empty list means that both were verified.
    """
    name, token = member
    who = ("MEMBER", token)
    certificate = client.call("GET", f"/api/markets/{market_id}/settlement/")
    stated = certificate["settlement"]
    screen.say(
        f"{stated['bets']} bets without names: stakes {money(stated['staked'])} = dividends {money(stated['net'])}"
        f" + fee {money(stated['fee'])} + refunds {money(stated['refunds'])}."
        f" Hash {certificate['settlement_hash'][:16]}…"
    )
    differences = _verify_alone(certificate, directory / "certificate.json", client, screen)

    bet = client.call("GET", f"/api/markets/{market_id}/bets/", who=who, shown=False)["bets"][-1]
    explanation = client.call("GET", f"/api/markets/{market_id}/bets/{bet['id']}/explanation/", who=who)
    proof = explanation["proof"]
    screen.say(f"{name}, in one SMS: {explanation['sentence']}")
    screen.say(
        f"This is bet {proof['index'] + 1} of {proof['tree_size']}. {len(proof['path'])} hashes lead to the root."
    )
    differences += _verify_alone(explanation, directory / "explanation.json", client, screen)
    if proof["merkle_root"] != stated["merkle_root"]:
        differences.append("the explanation's proof leads to another root than the certificate's")
    return differences


def _verify_alone(body: Any, path: Path, client: Client, screen: Screen) -> list[str]:
    """Save a document and verify it with a script that imports nothing from the project."""
    path.write_text(json.dumps(body))
    script = settings.BASE_DIR / "docs" / "verify_settlement.py"
    client.show(["python3 docs/verify_settlement.py", str(path)])
    verification = subprocess.run(
        [sys.executable, "-I", str(script), str(path)], capture_output=True, text=True, timeout=60
    )
    answer = (verification.stdout or verification.stderr).strip()
    screen.say(answer)
    return [] if verification.returncode == 0 else [f"{path.name}: {answer}"]
