"""The development port: its files, who may speak to it, and what it lets through."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from agent.events.model import Kind
from api.app import create_app
from api.dev.site import FILES, STATIC, dev_site
from tests.contract.scripted_node import ScriptedNode
from tests.contract.shim_process import ROOT

HOST = b"127.0.0.1:8080"
SWAGGER_UI = STATIC / "swagger-ui"


def ask(
    method: str, target: str, *, host: bytes = HOST, origin: bytes = b"", body: bytes = b"", writes: bool = False
) -> tuple[int, dict[str, str], bytes]:
    site = dev_site(create_app(ScriptedNode()), writes=writes)
    headers = [(b"host", host), (b"content-type", b"application/json")] + ([(b"origin", origin)] if origin else [])

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://x") as client:
            return await client.request(method, target, content=body, headers=headers)

    answer = asyncio.run(asked())
    return answer.status_code, dict(answer.headers), answer.content


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_with_a_policy(path: str) -> None:
    status, headers, body = ask("GET", path)
    assert status == 200
    assert body == (STATIC / FILES[path]).read_bytes()
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_files_name_nothing_elsewhere() -> None:
    ours = [path for path in STATIC.iterdir() if path.suffix in {".html", ".js", ".css"}]
    assert len(ours) >= 6
    for path in ours:
        assert not re.search(r"https?:", path.read_text()), path


def test_the_page_has_a_sentence_for_every_kind_of_event() -> None:
    script = (STATIC / "events.js").read_text()
    sentences = script.partition("const sentences = {")[2].partition("\n};")[0]
    assert set(re.findall(r"^  (\w+): \(f\) =>", sentences, re.MULTILINE)) == set(Kind)


def test_swagger_ui_is_unchanged() -> None:
    lines = (SWAGGER_UI / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    there = {path.name for path in SWAGGER_UI.iterdir()} - {"SHA256SUMS", "VERSION"}
    assert there == set(sums)
    assert {"LICENSE", "NOTICE"} <= there
    for name, expected in sums.items():
        assert hashlib.sha256((SWAGGER_UI / name).read_bytes()).hexdigest() == expected


@pytest.mark.parametrize("host", [b"localhost", b"localhost:8080", b"127.0.0.1", b"[::1]:8080", b"10.0.0.4:80"])
def test_an_address_is_a_host(host: bytes) -> None:
    assert ask("GET", "/v1/pool", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", [b"", b"evil.example", b"127.0.0.1.evil.example:8080", b"localhost.evil.example", b"[::1"]
)
def test_a_name_that_dns_could_lead_here_is_not(host: bytes) -> None:
    for path in ("/", "/v1/pool"):
        status, headers, body = ask("GET", path, host=host)
        assert (status, headers["content-type"]) == (421, "application/problem+json")
        assert json.loads(body)["detail"]


@pytest.mark.parametrize(
    "path", ["/dev/../site.py", "/dev/", "/static/index.html", "/dev/%2e%2e/site.py", "/../door.py"]
)
def test_nothing_else_of_the_disk_can_be_asked_for(path: str) -> None:
    assert ask("GET", path)[0] == 404


def test_nothing_can_be_changed() -> None:
    level = b'{"level":"debug"}'
    assert ask("PUT", "/v1/log-level", body=level)[0] == 403
    assert ask("POST", "/v1/cni/gc", body=b"{}")[0] == 403


def test_changes_are_for_those_who_asked_and_for_no_other_web_site() -> None:
    level = b'{"level":"debug"}'
    assert ask("PUT", "/v1/log-level", body=level, writes=True)[0] == 200
    assert ask("PUT", "/v1/log-level", body=level, writes=True, origin=b"http://" + HOST)[0] == 200
    for origin in (b"http://evil.example", b"null", b"http://127.0.0.1:9", b"https://" + HOST):
        assert ask("PUT", "/v1/log-level", body=level, writes=True, origin=origin)[0] == 403


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--dev-http", "0.0.0.0:8080"], 78, "ENOKI_DEV_HTTP is on 0.0.0.0; allowed: loopback"),
        (["--dev-http", "8080"], 78, 'ENOKI_DEV_HTTP is "8080"; allowed: an IP address'),
        (
            ["--dev-http", "127.0.0.1:80", "--dev-http-allow", "all"],
            78,
            'ENOKI_DEV_HTTP_ALLOW is "all"; allowed: remote',
        ),
        (["--dev"], 2, "--dev"),
    ],
)
def test_the_command_line_says_what_is_allowed(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "ENOKI_SOCKET": str(tmp_path / "agent.sock")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert not (tmp_path / "agent.sock.lock").exists()


def test_an_agent_without_the_port_does_not_carry_it() -> None:
    program = "import sys, agent.__main__, agent.assembly; sys.exit('api.dev.site' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0
