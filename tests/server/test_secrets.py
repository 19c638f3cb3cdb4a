"""Secrets appear in no message and no log line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import openai
import pytest
from own_http import serving

from refdiff.model.errors import InputError
from refdiff.server.cli import invocation, main
from refdiff.server.settings import ConfigurationError, load_settings
from refdiff.server.watch.webhook import check_url
from refdiff.server.web.json_logs import log_json


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mcp_token", "hunter2", "REFDIFF_MCP_TOKEN: value should have at least 16 characters"),
        ("llm_api_key", ["hunter2"], "REFDIFF_LLM_API_KEY: input should be a valid string"),
        ("audit_key", {"hunter2": 1}, "REFDIFF_AUDIT_KEY"),
        ("slack_bot_token", ["hunter2"], "SLACK_BOT_TOKEN"),
        ("qdrant_api_key", ["hunter2"], "QDRANT_API_KEY"),
        ("database_url", "mysql://u:hunter2@h/x", "REFDIFF_DATABASE_URL"),
        ("checkpoint_url", ["postgresql://u:hunter2@h"], "REFDIFF_CHECKPOINT_URL"),
    ],
)
def test_invalid_secret_is_named_and_not_shown(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        load_settings(**{name: value})
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_invalid_setting_that_is_no_secret_is_shown() -> None:
    with pytest.raises(ConfigurationError, match="REFDIFF_RATE_PER_MINUTE=-1"):
        load_settings(rate_per_minute=-1)


def test_short_token_is_not_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_MCP_TOKEN", "hunter2")
    assert main.run(["mcp", "--http"]) == 64
    said = capsys.readouterr()
    assert "16 characters" in said.err
    assert "hunter2" not in said.err + said.out


@pytest.mark.parametrize("url", ["ftp://bob:hunter2@host/", "https://[hunter2", "bob:hunter2@host/hook?token=hunter2"])
def test_address_that_is_no_webhook_is_not_repeated(url: str) -> None:
    with pytest.raises(InputError) as refused:
        check_url(url)
    assert "hunter2" not in str(refused.value)


@pytest.fixture
def receiver() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def levels() -> Iterator[None]:
    """Log levels and handlers as they were."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    before = {logger: logger.level for logger in loggers}
    handlers = list(logging.root.handlers)
    yield
    for logger, level in before.items():
        logger.setLevel(level)
    logging.root.handlers[:] = handlers


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
@pytest.mark.parametrize("kind", ["server", "command"])
def test_addresses_with_secrets_are_not_logged(
    receiver: str,
    levels: None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    level: str,
    kind: str,
) -> None:
    if kind == "server":
        log_json(level)
    else:
        invocation._set_up_logging(level)
    logging.root.addHandler(caplog.handler)
    logging.root.setLevel(level)
    httpx2.post(f"http://bob:pa55word@{receiver}/hook?token=s3cr3t")
    client = openai.OpenAI(base_url=f"http://bob:pa55word@{receiver}/v1?token=s3cr3t", api_key="s3cr3t")
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    logging.getLogger("refdiff.test").warning("it does log")
    assert "it does log" in caplog.text
    for secret in ("pa55word", "s3cr3t"):
        assert secret not in caplog.text + capsys.readouterr().err
