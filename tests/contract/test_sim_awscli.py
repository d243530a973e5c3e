"""The simulated EC2, driven by the AWS CLI from PyPI, unmodified and configured by environment alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.sim_endpoint import REGION, Endpoint, running_sim

AWS = Path(__file__).parents[2] / ".venv-awscli" / "bin" / "aws"

pytestmark = pytest.mark.skipif(not AWS.exists(), reason="the AWS CLI is not installed: run `make setup`")


@pytest.fixture
def sim() -> Iterator[Endpoint]:
    with running_sim() as endpoint:
        yield endpoint


def aws(sim: Endpoint, *arguments: str, fails: bool = False) -> Any:
    """The CLI's JSON answer; with `fails`, what it complains about."""
    environment = {
        "PATH": os.defpath,
        "AWS_ENDPOINT_URL_EC2": sim.url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "AKIDCLI",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_MAX_ATTEMPTS": "1",
    }
    done = subprocess.run(
        [AWS, "ec2", *arguments, "--output", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else json.loads(done.stdout or "{}")


def test_the_life_of_an_eni(sim: Endpoint) -> None:
    instance_id = sim.launch()
    made = aws(
        sim,
        "create-network-interface",
        "--subnet-id",
        sim.subnets[0],
        "--secondary-private-ip-address-count",
        "2",
        "--tag-specifications",
        "ResourceType=network-interface,Tags=[{Key=owner,Value=cli}]",
    )["NetworkInterface"]
    eni_id = made["NetworkInterfaceId"]
    assert len(made["PrivateIpAddresses"]) == 3
    attached = aws(
        sim,
        "attach-network-interface",
        "--network-interface-id",
        eni_id,
        "--instance-id",
        instance_id,
        "--device-index",
        "1",
    )
    seen = aws(sim, "describe-network-interfaces", "--filters", "Name=tag:owner,Values=cli")["NetworkInterfaces"][0]
    assert (seen["NetworkInterfaceId"], seen["Attachment"]["Status"]) == (eni_id, "attached")
    complaint = aws(sim, "delete-network-interface", "--network-interface-id", eni_id, fails=True)
    assert "(InvalidParameterValue)" in complaint
    assert f"Network interface '{eni_id}' is currently in use." in complaint
    aws(sim, "detach-network-interface", "--attachment-id", attached["AttachmentId"])
    aws(sim, "delete-network-interface", "--network-interface-id", eni_id)
    left = aws(sim, "describe-network-interfaces", "--page-size", "5")["NetworkInterfaces"]
    assert [each["Attachment"]["InstanceId"] for each in left] == [instance_id]
    assert {call["access_key_id"] for call in sim.control.get("/calls").json()["calls"]} == {"AKIDCLI"}
