"""`enokictl support-bundle`: what is in it, and what must not be."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.log_schemas import LogLine, LogView
from api.node_schemas import ConfigView, SettingView
from ctl import bundle
from ctl.client import Client
from tests.contract.scripted_node import ScriptedNode, running
from tests.contract.scripted_operators import AT

SECRETS = {
    "key id": "AKIAIOSFODNN7EXAMPLE",
    "secret key": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "session token": "IQoJb3JpZ2luX2VjEXAMPLETOKENVALUE",
    "service account": "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl",
    "bearer": "abcdef0123456789.ZYXWV",
    "url user": "proxyuser:hunter22",
    "password": "correct-horse-battery",
    "private key": "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
}
LINES = [
    f"signed by {SECRETS['key id']}",
    f"aws_secret_access_key = {SECRETS['secret key']}",
    json.dumps({"sessionToken": SECRETS["session token"]}),
    f"mounted {SECRETS['service account']}",
    f"Authorization: Bearer {SECRETS['bearer']}",
    f"proxy http://{SECRETS['url user']}@proxy.example:3128/",
    f"--registry-password {SECRETS['password']}",
    f"-----BEGIN PRIVATE KEY-----\n{SECRETS['private key']}\n-----END PRIVATE KEY-----",
]


class LeakyNode(ScriptedNode):
    """Its log and its settings say what they should not."""

    def logs(self, *, namespace: str | None, pod: str | None, request_id: str | None, limit: int) -> LogView:
        del namespace, pod, request_id, limit
        lines = [LogLine(ts=AT, level="info", logger="x", event=text) for text in LINES]
        return LogView(lines=lines, remembered_since=AT)

    def config(self) -> ConfigView:
        setting = SettingView(
            name="HTTPS_PROXY",
            value=LINES[5],
            default="",
            provenance="environment",
            allowed="a URL",
            description="The proxy.",
        )
        return ConfigView(version="dev", settings=[setting], notices=[LINES[1]])


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running(LeakyNode(), tmp_path / "agent.sock"):
        yield Client(str(tmp_path / "agent.sock"))


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        files = {one.name.partition("/")[2]: archive.extractfile(one) for one in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_it_holds_what_the_agent_says_without_secrets(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d" / "10-x.conflist").write_text("\n".join(LINES))
    monkeypatch.setattr(bundle, "CONFIGURATION", tmp_path / "net.d")
    monkeypatch.setattr(
        bundle, "COMMANDS", {"uname": ("uname", "-a"), "echo": ("printf", "%s\n", *LINES), "absent": ("/no/such",)}
    )
    made = bundle.write(client, tmp_path / "b.tar.gz", on_node=True, said=lambda _: None)
    assert made.stat().st_mode & 0o777 == 0o600
    found = contents(made)
    assert {f"api/{name}.json" for name in bundle.ANSWERS} <= found.keys()
    assert {"api/events.jsonl", "api/metrics.txt", "node/uname.txt", "node/cni/10-x.conflist"} <= found.keys()
    assert "Linux" in found["node/uname.txt"]
    assert "/no/such" in found["node/absent.txt"]
    assert json.loads(found["api/pool.json"])["counts"]["free_count"] == 4
    assert len(json.loads(found["api/logs.json"])["lines"]) == len(LINES)
    everything = "\n".join(found.values())
    assert [name for name, secret in SECRETS.items() if secret in everything] == []
    assert everything.count(bundle.LEFT_OUT) >= 3 * len(LINES)


def test_without_an_agent_it_says_so_and_without_the_node_it_runs_nothing(tmp_path: Path) -> None:
    made = bundle.write(
        Client(str(tmp_path / "absent.sock")), tmp_path / "b.tar.gz", on_node=False, said=lambda _: None
    )
    found = contents(made)
    assert "no agent at" in found["api/pool.json"]
    assert not any(name.startswith("node/") for name in found)
    with pytest.raises(FileExistsError):
        bundle.write(Client("absent"), made, on_node=False, said=lambda _: None)


def test_what_is_no_secret_stays() -> None:
    text = '{"container_id": "c1", "eni": "eni-0123456789abcdef0", "next_token_s": 1.5, "pod": "default/web-0"}'
    assert bundle.without_secrets(text) == text
