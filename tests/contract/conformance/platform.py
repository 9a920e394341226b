"""The platform under test: one authenticated HTTP client, and the checks that every answer goes through."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from contract.conformance.checks import Checks
from contract.shapes import mismatches
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

EXAMPLES: dict[str, Any] = json.loads((Path(__file__).resolve().parents[1] / "examples.json").read_text())
RUN = uuid.uuid4().hex[:8]  # keeps names of this run apart from earlier runs on the same platform
NOT_BUILT = 501
SAMPLE = """# Transport Manager
The P2P network architecture has three transports: BitChat, BetaNet and QUIC. The Transport Manager selects a
protocol from device type, battery level and network conditions. BitChat is a Bluetooth mesh for phones that are
offline. BetaNet tunnels traffic through HTTPS. QUIC gives the highest throughput between desktops and servers.
"""


class NotYet(Exception):
    """A WebSocket that is documented and not built."""


class Platform:
    """`call` gives an empty answer for what failed or is not built, so what depends on it is left out."""

    def __init__(self, url: str, farm_ws: str, checks: Checks) -> None:
        self.url, self.farm_ws, self.check = url.rstrip("/"), farm_ws, checks
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.token = self.refresh = self.api_key = ""
        self.called: set[str] = set()

    def headers(self, system: str = "") -> dict[str, str]:
        """The credential that the system's document asks for."""
        if system == "ains" and self.api_key:
            return {"X-API-Key": self.api_key}
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def get(self, path: str, **request: Any) -> httpx.Response:
        """GET as the signed-in user."""
        return self.http.get(path, headers=self.headers(), **request)

    def post(self, path: str, body: Any = None, **request: Any) -> httpx.Response:
        """POST as the signed-in user."""
        if body is not None:
            request["json"] = body
        return self.http.post(path, headers=self.headers(), **request)

    def call(
        self, key: str, *, path: dict[str, str] | None = None, body: Any = None, status: int | None = None,
        headers: dict[str, str] | None = None, shape: bool = True, **request: Any,
    ) -> Any:  # fmt: skip
        """Call the endpoint `key` of examples.json; check status and shape; the decoded body, {} after a failure."""
        spec = EXAMPLES[key]
        want = status or spec["status"]
        if body is not None:
            request["json"] = body
        self.called.add(key)
        try:
            answer = self.http.request(
                spec["method"], spec["path"].format(**(path or {})), headers=headers or self.headers(spec["system"]),
                **request,
            )  # fmt: skip
        except httpx.HTTPError as error:
            self.check.that(key, False, repr(error))
            return {}
        accepted = {want, 201, 202} if spec["method"] == "POST" and want == 200 and status is None else {want}
        return self.judge(key, answer, accepted, shape)

    def judge(self, key: str, answer: httpx.Response, accepted: set[int], shape: bool = True) -> Any:
        """Status, then shape."""
        self.called.add(key)
        if answer.status_code == NOT_BUILT:
            self.check.later(key)
            return {}
        told = f"{answer.status_code} {answer.text[:200]}"
        if not self.check.that(f"{key} -> {min(accepted)}", answer.status_code in accepted, told):
            return {}
        try:
            data = answer.json() if answer.content else {}
        except ValueError:
            return answer.text
        example = EXAMPLES[key]["response"]
        if shape and example is not None:
            found = mismatches(example, data)
            self.check.that(f"{key} has the shape of its example", not found, "; ".join(found[:4]))
        return data

    def error(
        self, what: str, answer: httpx.Response, status: int, code: str | None, where: str, key: str = ""
    ) -> None:
        """An error must carry the dialect's own format: `where` is the dotted path of its code.

        `key`: the endpoint, where this is the only thing that is asked of it.
        """
        self.called.add(key)
        if answer.status_code == NOT_BUILT:
            self.check.later(what)
            return
        try:
            found: Any = answer.json()
            for part in where.split("."):
                found = found[part]
        except (ValueError, KeyError, TypeError):
            found = None
        good = answer.status_code == status and (found == code if code else found is not None)
        self.check.that(what, good, f"want {status} {where}={code}, got {answer.status_code} {answer.text[:200]}")

    def socket(self, key: str, url: str, headers: dict[str, str]) -> ClientConnection:
        """A WebSocket. Raises `NotYet` for one that is not built."""
        self.called.add(key)
        try:
            return connect(url, additional_headers=headers)
        except InvalidStatus as refused:
            if refused.response.status_code != NOT_BUILT:
                raise
            self.check.later(key)
            raise NotYet(key) from refused

    def wait(self, what: str, seconds: float, probe: Callable[[], Any]) -> Any:
        """Poll `probe` until it returns something true."""
        end, why = time.monotonic() + seconds, ""
        pause = threading.Event()
        while time.monotonic() < end:
            try:
                seen = probe()
            except Exception as error:  # a 429 or an error body has another shape: ask again later
                seen, why = None, repr(error)
            else:
                why = ""
            if seen:
                self.check.that(what, True)
                return seen
            pause.wait(1.0)
        self.check.that(what, False, f"not within {seconds} s {why}")
        return None

    def rest(self, system: str) -> None:
        """Every endpoint of the system that no check has reached: not built, or a check before it went wrong."""
        for key, spec in EXAMPLES.items():
            if spec["system"] != system or key in self.called or spec["method"] == "WS":
                continue
            path = {part: "none" for part in spec["path"].replace("}", "{").split("{")[1::2]}
            try:
                answer = self.http.request(
                    spec["method"], spec["path"].format(**path), headers=self.headers(system), json=spec["request"]
                )
            except httpx.HTTPError as error:
                self.check.that(key, False, repr(error))
                continue
            if answer.status_code == NOT_BUILT:
                self.check.later(key)
            else:
                self.check.that(key, False, f"not reached by any check ({answer.status_code})")
