"""What the demo shows everyone: a certificate, verified by a script that knows nothing of us, and one explanation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from rich.console import Console

from api.demo.client import Client


def show(client: Client, console: Console, market_id: int, member: tuple[str, str], directory: Path) -> list[str]:
    """Fetch, save and verify the market's certificate and the explanation of the first bet of `member`, a name and a
    token. Returns what does not hold.
    """
    name, token = member
    who = ("MEMBER", token)
    certified = client.call("GET", f"/api/markets/{market_id}/settlement/")
    stated = certified["settlement"]
    _say(
        console, f"{stated['bets']} bets without names: {stated['equation']}. Hash {certified['settlement_hash'][:16]}…"
    )
    differences = _verify_alone(certified, directory / "certificate.json", client, console)

    bet = client.call("GET", f"/api/markets/{market_id}/bets/", who=who, shown=False)["bets"][-1]
    explained = client.call("GET", f"/api/markets/{market_id}/bets/{bet['id']}/explanation/", who=who)
    proof = explained["proof"]
    _say(console, f"{name}, in one SMS: {explained['sentence']}")
    _say(console, f"Bet {proof['index'] + 1} of {proof['tree_size']}; {len(proof['path'])} hashes lead to the root.")
    differences += _verify_alone(explained, directory / "explanation.json", client, console)
    if proof["merkle_root"] != stated["merkle_root"]:
        differences.append("the explanation's proof leads to another root than the certificate's")
    return differences


def _verify_alone(body: Any, path: Path, client: Client, console: Console) -> list[str]:
    path.write_text(json.dumps(body))
    script = settings.BASE_DIR / "docs" / "verify_settlement.py"
    client.show(f"python docs/verify_settlement.py {path}")
    run = subprocess.run([sys.executable, "-I", str(script), str(path)], capture_output=True, text=True, timeout=60)
    said = (run.stdout or run.stderr).strip()
    _say(console, said)
    return [] if run.returncode == 0 else [f"{path.name}: {said}"]


def _say(console: Console, words: str) -> None:
    console.print(f"  {words}", markup=False, soft_wrap=True)
