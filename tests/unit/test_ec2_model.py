"""The part of botocore's EC2 model that ships: up to date, and really what a client is made from."""

from __future__ import annotations

from botocore import xform_name
from botocore.session import get_session

from agent.cloud.ec2 import EC2_MODEL
from scripts.ec2_model import called_methods, files


def test_it_is_what_the_installed_botocore_and_the_code_say() -> None:
    assert {path: path.read_text(encoding="utf-8") for path in files()} == files(), "run `make ec2-model`"


def test_a_client_has_the_calls_we_make_and_no_others() -> None:
    session = get_session()
    session.set_config_variable("data_path", str(EC2_MODEL))

    model = session.get_service_model("ec2")

    assert {xform_name(name) for name in model.operation_names} == called_methods()
    assert "describe_network_interfaces" in called_methods()


def test_the_regions_are_all_there() -> None:
    ours, full = get_session(), get_session()
    ours.set_config_variable("data_path", str(EC2_MODEL))

    for partition in ("aws", "aws-cn", "aws-us-gov"):
        assert ours.get_available_regions("ec2", partition) == full.get_available_regions("ec2", partition) != []
