"""One lab whose agent has its development port, one browser that can reach this port and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.lab import Lab, LabNode
from lab.pods import Pod
from tests.browser.chromium import Chromium, chromium, executable
from tests.browser.loopback import loopback_namespace
from tests.system.conftest import LabFactory, lab, requires_root  # noqa: F401 - fixtures

PORT = 8080
ORIGIN = f"http://127.0.0.1:{PORT}"
ADDRESSES = 15
"""Of a t3.medium, all three ENIs: EC2's published limits."""


@pytest.fixture(scope="session")
def requires_chromium() -> None:
    """Skip without the browser: 100 MB that only these tests need."""
    if executable() is None:
        pytest.skip("needs Debian's package chromium; `make test-browser` installs it")


@pytest.fixture(scope="module")
def vpc(requires_chromium: None, lab: LabFactory) -> Lab:  # noqa: F811 - the fixture
    return lab(
        instance_type="t3.medium",
        agent_environment={
            "ENOKI_DEV_HTTP": ORIGIN.removeprefix("http://"),
            "IP_COOLDOWN_PERIOD": "1",
            "ENOKI_ADD_DEADLINE_S": "1",
        },
    )


@pytest.fixture
def node(vpc: Lab) -> LabNode:
    return vpc.nodes[0]


@pytest.fixture(scope="module")
def browser(vpc: Lab) -> Iterator[Chromium]:
    name = f"{vpc.plan.name}-pod-browser"
    with (
        loopback_namespace(name, node_netns=f"/run/netns/{vpc.nodes[0].namespace}", port=PORT),
        chromium(inside=["nsenter", f"--net=/run/netns/{name}", "--"]) as page,
    ):
        yield page


@pytest.fixture
def page(browser: Chromium) -> Chromium:
    """The browser on an empty page, as a desktop has it."""
    browser.open("about:blank")
    browser.size(1280, 800)
    browser.colours("light")
    browser.requested_urls.clear()
    browser.errors.clear()
    return browser


@pytest.fixture
def pods(vpc: Lab, node: LabNode) -> Iterator[list[Pod]]:
    """Pods that a test may start; those it started are stopped."""
    made = [
        Pod(container_id=f"{vpc.plan.name}-pod-{number}", name=f"web-{number}", socket=node.socket)
        for number in range(3)
    ]
    yield made
    for pod in made:
        pod.stop()
