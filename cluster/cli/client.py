"""A small client of the village's own HTTP interface, for the commands."""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx

from cluster.settings import Settings


class Refused(Exception):
    """The village answered with an error, or not at all; the message is for a person."""


class Away(Refused):
    """It could not answer just now: the same question may be answered in a while."""


class Client:
    """Signs in as the admin of this home, or with VILLAGE_TOKEN, and calls."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http = httpx.Client(base_url=settings.url, timeout=httpx.Timeout(120, connect=3))
        self._token = os.environ.get("VILLAGE_TOKEN", "")

    @property
    def token(self) -> str:
        """A bearer token."""
        if not self._token:
            username, password = self._credentials()
            self._token = self.sign_in(username, password)["access_token"]
        return self._token

    def _credentials(self) -> tuple[str, str]:
        if self.settings.admin_password:
            return self.settings.admin_username, self.settings.admin_password
        file = self.settings.home / "admin.json"
        try:
            kept = json.loads(file.read_text())
        except OSError as error:
            raise Refused(f"no credentials: set VILLAGE_TOKEN, or VILLAGE_HOME to a home with {file.name}") from error
        return kept["username"], kept["password"]

    def sign_in(self, username: str, password: str) -> dict[str, Any]:
        """The token pair. Raises `Refused`."""
        return self._answer("POST", "/auth/token", {"username": username, "password": password}, signed=False)

    def get(self, path: str, **query: Any) -> Any:
        """The answer's `data`, or the whole of it where the dialect has no envelope."""
        return self._answer("GET", path, query=query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """See `get`."""
        return self._answer("POST", path, body)

    def delete(self, path: str) -> Any:
        """See `get`."""
        return self._answer("DELETE", path)

    def _answer(
        self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None, signed: bool = True
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if signed else {}
        try:
            answer = self.http.request(method, path, json=body, params=query, headers=headers)
        except httpx.HTTPError as error:
            raise Refused(f"no village answers at {self.settings.url} (`village up` starts one): {error}") from error
        if answer.is_error:
            raise (Away if answer.status_code == 503 else Refused)(said(answer))
        content = answer.json()
        return content["data"] if isinstance(content, dict) and content.get("success") is True else content

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a Server-Sent Events answer as they come."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with self.http.stream("POST", path, json=body, headers=headers) as answer:
            if answer.is_error:
                answer.read()
                raise Refused(said(answer))
            for line in answer.iter_lines():
                if line.startswith("data:") and line != "data: [DONE]":
                    yield json.loads(line.removeprefix("data:"))


def said(answer: httpx.Response) -> str:
    """An error of any dialect in one line."""
    try:
        content = answer.json()
    except ValueError:
        return f"{answer.status_code} {answer.text[:200]}"
    error = content.get("error")
    error = content if not isinstance(error, dict) else error
    details = error.get("details") or error.get("detail") or ""
    return f"{answer.status_code} {error.get('message', content)}{f' {details}' if details else ''}"
