"""Log lines: JSON whoever writes them, with whose request it is, without what nobody may read."""

import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from otlp_receiver import collecting

from cluster import logs, tracing
from cluster.cli.main import parser
from cluster.origin import Origin, within
from cluster.settings import Settings

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADER = f"00-{TRACE}-b7ad6b7169203331-01"
log = structlog.get_logger()


class Written(io.BytesIO):
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    stream = Written()
    logs.configure("router", stream)
    yield stream
    logs.configure("test")


def test_a_line_is_one_json_object_whichever_library_wrote_it(written: Written):
    log.info("from structlog", n=1)
    logging.getLogger("village.router").warning("from %s", "logging")
    logging.getLogger("somebody.else").debug("not worth a line")
    ours, theirs = written.lines()
    assert (ours["event"], ours["n"], ours["level"], ours["part"]) == ("from structlog", 1, "info", "router")
    assert (theirs["event"], theirs["level"], theirs["part"]) == ("from logging", "warning", "router")
    assert theirs["logger"] == "village.router" and ours["timestamp"].endswith("Z") and ours["pid"] == theirs["pid"]


def test_configuring_again_does_not_write_twice(written: Written):
    logs.configure("router", written)
    logging.getLogger("village.router").info("once")
    assert len(written.lines()) == 1


def test_a_line_says_whose_request_it_is_of_wherever_that_is_worked_on(written: Written):
    with within(Origin(request_id="req_1", principal_id="user_a", traceparent=HEADER)):
        log.info("structlog")
        logging.getLogger("village.router").info("logging")
        log.info("itself", request_id="req_2")
    log.info("nobody's")
    for line in written.lines()[:2]:
        assert (line["request_id"], line["principal_id"], line["trace_id"]) == ("req_1", "user_a", TRACE)
    assert written.lines()[2]["request_id"] == "req_2"
    assert not {"request_id", "principal_id", "trace_id"} & written.lines()[3].keys()


def test_a_line_inside_a_span_has_its_trace(written: Written):
    with collecting() as collector:
        tracing.configure(Settings(otlp_endpoint=collector.url), "test")
        try:
            with tracing.span("work", HEADER):
                log.info("traced")
        finally:
            tracing.close()
    assert written.lines()[0]["trace_id"] == TRACE


def test_a_traceback_is_text_without_the_values_of_variables(written: Written):
    def fails(password: str) -> None:
        raise RuntimeError("a bug")

    try:
        fails("hunter".upper())
    except RuntimeError:
        log.exception("failed")
    assert "RuntimeError: a bug" in written.lines()[0]["exception"] and b"HUNTER" not in written.getvalue()


SECRETS = (
    {"password": "correct horse"}, {"headers": {"Authorization": "Bearer abc.def"}}, {"X-API-Key": "correct horse"},
    {"url": "/ws?token=correcthorse&since=1"}, {"body": json.dumps({"password": "correct horse", "n": 1})},
    {"body": json.dumps({"nested": json.dumps({"refresh_token": "correct horse"})})}, {"form": "password=correcthorse"},
    {"said": repr({"secret": "correct horse"})}, {"sent": "authorization: bearer correcthorse"},
    {"key": "ains_" + "correcthorse" * 4}, {"why": "bad eyJhbGciOiJIUzI1.correcthorse.abc"},
    {"hook": "whsec_" + "correcthorse" * 3}, {"mfa_code": "correcthorse"}, {"task_token": "1.correcthorse"},
    {"client_secret": "correct horse"}, {"new_password": "correct horse"}, {"VILLAGE_ADMIN_PASSWORD": "correct horse"},
)  # fmt: skip


@pytest.mark.parametrize("fields", SECRETS, ids=lambda fields: next(iter(fields)))
def test_what_looks_like_a_credential_is_blotted_out_of_a_line(written: Written, fields: dict[str, Any]):
    log.info("a line", **fields)
    logging.getLogger("village.router").info("a line %s", json.dumps(fields))
    for line in written.lines():  # still JSON
        assert "horse" not in str(line) and "abc.def" not in str(line), line
        assert "[redacted]" in str(line)


def test_what_is_no_credential_stays(written: Written):
    fields = {"completion_tokens": 12, "token_ids": [1, 2], "tokens_per_second": 3.5, "api": "AINS", "n": "secretary"}
    log.info("a line", **fields)
    assert fields.items() <= written.lines()[0].items()


@pytest.mark.parametrize("word", ["a-", "eyJ-", "token ", "password\\", "ains_-", "bearer ", "token=", "eyJaaaaaaaaa."])
def test_no_line_takes_long_whatever_a_caller_has_put_in_it(word: str):
    line = (word * 20_000 + "password").encode()
    begun = time.process_time()
    logs.scrub(line)
    assert time.process_time() - begun < 1  # backtracking took minutes


def test_a_village_log_is_read_from_every_process_in_the_order_of_time(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "session_latest" / "logs"
    folder.mkdir(parents=True)
    monkeypatch.setattr("cluster.supervisor.ray_folder", lambda _: str(tmp_path))
    for file in ("worker-1.err", "worker-2.err", "job-driver-task_1.log"):
        with within(Origin(request_id="req_1" if file != "worker-2.err" else "req_2")):
            log.error(f"in {file}")
    noise = b"Ray says something\n"
    first, second, third = written.getvalue().splitlines(keepends=True)
    (folder / "worker-1.err").write_bytes(noise + third + b'{"part":"gatew')
    (folder / "worker-2.err").write_bytes(noise + second)
    (folder / "job-driver-task_1.log").write_bytes(first + noise)

    def shown(*words: str) -> list[str]:
        told = parser().parse_args(["logs", *words])
        status, out = told.action(Settings(home=tmp_path), told), capsys.readouterr().out
        assert status == (0 if out else 1)
        return [json.loads(line)["event"] for line in out.splitlines()]

    assert shown() == ["in worker-1.err", "in worker-2.err", "in job-driver-task_1.log"]
    assert shown("req_2") == ["in worker-2.err"] and shown("--last", "1") == ["in job-driver-task_1.log"]
    assert shown("--part", "router", "--level", "error") and not shown("--part", "gateway") and not shown("req_none")
