"""openapi.yaml is what the routes say, is valid, and its examples obey it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from openapi_spec_validator import validate

from api.problems import CniCode
from api.service import Verb
from scripts import openapi
from tests.contract.openapi_document import DOCUMENT, problems_with_schema
from tests.contract.shim_process import ROOT


def test_the_committed_document_is_up_to_date() -> None:
    assert openapi.drift() == []


def test_the_check_fails_on_one_changed_digit(tmp_path: Path) -> None:
    changed = tmp_path / "openapi.yaml"
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ["openapi.py", "--check"]
from pathlib import Path
from scripts import openapi
openapi.PATH = Path({str(changed)!r})
sys.exit(openapi.main())
"""
    text = openapi.PATH.read_text()
    assert "maxLength: 253" in text
    changed.write_text(text)
    assert _run(script) == (0, "")
    changed.write_text(text.replace("maxLength: 253", "maxLength: 254"))
    status, words = _run(script)
    assert status == 1
    assert "-            maxLength: 254" in words
    assert "+            maxLength: 253" in words


def _run(script: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_every_example_obeys_its_schema() -> None:
    checked = 0
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for content in (media for body in bodies for media in body.get("content", {}).values()):
                if "example" in content:
                    assert not problems_with_schema(content["example"], content["schema"])
                    checked += 1
    assert checked == len(Verb) * 8 + 2


def test_every_code_is_documented() -> None:
    text = DOCUMENT["components"]["schemas"]["CniErrorObject"]["properties"]["code"]["description"]
    unused = {CniCode.FIELD_UNSUPPORTED, CniCode.IO_FAILED}
    assert all(str(code.value) in text for code in CniCode if code not in unused)


def test_every_operation_explains_itself() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert len(operation["description"]) > 60, (method, path)
            assert operation["tags"], (method, path)
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (method, path, parameter["name"])


def test_every_answer_and_every_member_explains_itself() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                assert answer["description"] != "Successful Response", (method, path, status)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema.get("description") or name.startswith("Body_"), name
        for member, described in schema.get("properties", {}).items():
            assert described.get("description"), (name, member)


def test_every_answer_has_an_example_that_obeys_it() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name, schema in schemas.items():
        if "example" in schema:
            assert not problems_with_schema(schema["example"], schema), name
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for kind, content in operation["responses"].get("200", {}).get("content", {}).items():
                schema = content["schema"].get("items", content["schema"])
                name = schema.get("$ref", "").rpartition("/")[2]
                assert kind != "application/json" or "example" in content or "example" in schemas[name], (method, path)
