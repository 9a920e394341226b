"""Drive a running village through every endpoint of the five APIs and hold each answer against its example.

    make conformance            or, with choices: PYTHONPATH=tests python -m contract.conformance --only ains --verbose

It plays the real counterparts itself: an HTTP agent that executes tasks, a webhook receiver that checks signatures, and
a farm worker on the WebSocket. An endpoint that answers the documented 501 counts as skipped. The last line is
'N passed, N failed, N skipped'; the exit status is 1 when anything failed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from contract.conformance import aifarm, ains, aivillage, forge, orchestra
from contract.conformance.checks import Checks
from contract.conformance.platform import NotYet, Platform

SYSTEMS = {
    "aivillage": aivillage.run, "aifarm": aifarm.run, "ains": ains.run, "orchestra": orchestra.run, "forge": forge.run
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """Defaults are those of `village up` in this folder."""
    port, farm_port = os.environ.get("VILLAGE_PORT", "8080"), os.environ.get("VILLAGE_FARM_PORT", "8765")
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--url", default=f"http://127.0.0.1:{port}")
    ask.add_argument("--farm-ws", default=f"ws://127.0.0.1:{farm_port}")
    ask.add_argument("--username", default="")
    ask.add_argument("--password", default="")
    ask.add_argument("--only", action="append", choices=list(SYSTEMS))
    ask.add_argument("--verbose", action="store_true")
    return ask.parse_args()


def credentials(username: str, password: str) -> tuple[str, str]:
    """Those given, those in the environment, or those that `village up` made."""
    username = username or os.environ.get("VILLAGE_ADMIN_USERNAME", "")
    password = password or os.environ.get("VILLAGE_ADMIN_PASSWORD", "")
    if password:
        return username or "admin@village.local", password
    file = Path(os.environ.get("VILLAGE_HOME", ".village")) / "admin.json"
    if not file.exists():
        sys.exit(f"no --password, no VILLAGE_ADMIN_PASSWORD and no {file}: is the village up?")
    kept = json.loads(file.read_text())
    return kept["username"], kept["password"]


def main() -> int:
    """The exit status."""
    told = arguments()
    username, password = credentials(told.username, told.password)
    checks = Checks(told.verbose)
    platform = Platform(told.url, told.farm_ws, checks)
    login = platform.call("aivillage POST /auth/token", body={"username": username, "password": password})
    platform.token, platform.refresh = login.get("access_token", ""), login.get("refresh_token", "")
    for name in told.only or SYSTEMS:
        print(name)
        before = (checks.passed, checks.failed, checks.skipped)
        try:
            SYSTEMS[name](platform)
        except NotYet:
            pass
        except Exception as error:
            checks.that(f"{name}: the scenario runs to its end", False, repr(error))
        platform.rest(name)
        now = (checks.passed, checks.failed, checks.skipped)
        print("  {}: {} passed, {} failed, {} skipped".format(name, *(n - b for n, b in zip(now, before, strict=True))))
    print(f"{checks.passed} passed, {checks.failed} failed, {checks.skipped} skipped")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
