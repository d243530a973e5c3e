"""SIGKILL of the agent before and after each EC2 call of growth and shrinkage, on the wire.

The simulator keeps one call without an answer, before it takes effect or after; meanwhile the agent is killed, and
another one starts. Then every ENI and every address that EC2 has given must be known to the agent exactly once, or be a
leak that the next sweep deletes; the pods that were there keep their addresses, and new ones get theirs.

The node is a t3.small: 3 ENIs with 3 pod addresses each (EC2 User Guide, "IP addresses per network interface per
instance type"). Two pods that stay, and one warm address, fill the primary ENI; a third pod takes a second ENI, a
fourth one more address of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from agent.cloud.leaks import Standing, Stray, judge
from agent.ipam.model import EniId
from lab import agent_api
from lab.lab import Lab
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.crashing_agent import restart
from tests.system.eventually import eventually_equal
from tests.system.plugin_process import ask
from tests.system.vpc_control import VpcControl

SETTINGS = {
    "WARM_IP_TARGET": "1",
    "IP_COOLDOWN_PERIOD": "0",
    "ENOKI_SETTLE_ADDRESSES_S": "0",
    "ENOKI_SETTLE_ENIS_S": "0",
}
PER_POD_COUNT = {2: (1, 3), 3: (2, 4), 4: (2, 5)}
"""ENIs, and pod addresses on them, by pods."""

CALLS = [
    ("CreateNetworkInterface", 2, 3),
    ("AssignPrivateIpAddresses", 3, 4),
    ("UnassignPrivateIpAddresses", 4, 3),
    ("DetachNetworkInterface", 3, 2),
    ("AttachNetworkInterface", 2, 3),
    ("DeleteNetworkInterface", 3, 2),
    ("ModifyNetworkInterfaceAttribute", 2, 3),
]
"""Each with the pods before and after what makes the pool ask for it; in this order each begins where another ends."""

LEAKING = {
    ("CreateNetworkInterface", True),
    ("AttachNetworkInterface", False),
    ("DetachNetworkInterface", True),
    ("DeleteNetworkInterface", False),
}
"""Where the kill leaves an ENI that is attached to nothing. The next agent does not look for it: the sweep does."""


class KilledNode:
    """One node, the two pods that stay on it, and pods that come and go."""

    def __init__(self, vpc: Lab) -> None:
        self.vpc = vpc
        self.node = vpc.nodes[0]
        self.control = VpcControl(vpc)
        self.ec2 = truths.Ec2(vpc)
        self._numbers = count()
        self._pods: list[Pod] = []
        self._live: dict[str, str] = {}
        self.come()
        self.come()

    def come(self) -> None:
        """A pod more, which gets the warm address."""
        name = f"pod-{next(self._numbers)}"
        pod = Pod(container_id=f"{self.vpc.plan.name}-{name}", name=name, socket=self.node.socket)
        make_namespace(pod.container_id)
        self._pods.append(pod)
        address = ask(pod, "ADD").address
        assert address not in self._live.values()
        self._live[pod.container_id] = address

    def go(self) -> None:
        """The pod that came last goes. Runtimes repeat a DEL; here that is also one more turn of the pool."""
        pod = self._pods.pop()
        del self._live[pod.container_id]
        assert [ask(pod, "DEL").code for _ in range(2)] == [0, 0]
        delete_namespace(pod.container_id)

    def seen(self) -> tuple[int, int]:
        """ENIs and pod addresses, if EC2 and the agent say the same, each once; else nothing like it."""
        attached = {eni["NetworkInterfaceId"] for eni in self.ec2.enis(self.node)}
        pool = agent_api.get(self.node.socket, "/v1/pool")["enis"]
        known = [address["address"] for eni in pool for address in eni["addresses"]]
        agree = attached == {eni["eni_id"] for eni in pool} and self.ec2.pod_addresses(self.node) == set(known)
        return (len(attached), len(known)) if agree and len(known) == len(set(known)) else (-1, -1)

    def settle(self) -> None:
        """Return once the pool has exactly what it should, and all three truths agree on the pods."""
        eventually_equal(self.seen, PER_POD_COUNT[len(self._pods)])
        truths.assert_agreed(self.node, self.ec2, self._live)

    def become(self, pod_count: int) -> None:
        """Let pods come or go, one at a time, until there are so many."""
        self.settle()
        while len(self._pods) != pod_count:
            self.come() if len(self._pods) < pod_count else self.go()
            self.settle()

    def ping(self) -> None:
        """Each pod from the node."""
        for address in self._live.values():
            truths.run_in(truths.netns(self.node), "ping", "-q", "-c", "1", "-W", "5", address)

    def sweep(self) -> int:
        """Delete what is attached to nothing, which must all be leaks of this node by what their tags say."""
        leaked = self.ec2.available_enis()
        for eni in leaked:
            stray = Stray(
                eni_id=EniId(eni["NetworkInterfaceId"]),
                account_id=eni["OwnerId"],
                description=eni["Description"],
                tags={tag["Key"]: tag["Value"] for tag in eni["TagSet"]},
            )
            standing, why = judge(
                stray,
                instance_id=self.node.instance_id,
                account_id=eni["OwnerId"],
                cluster_name="",
                now=datetime.now(UTC) + timedelta(minutes=6),
                seen_s=None,
            )
            assert standing is Standing.OURS, why
            self.ec2.delete_eni(eni["NetworkInterfaceId"])
        return len(leaked)

    def close(self) -> None:
        for pod in self._pods:
            ask(pod, "DEL")
            delete_namespace(pod.container_id)


@pytest.fixture(scope="module")
def killed(lab: LabFactory) -> Iterator[KilledNode]:
    vpc = lab(instance_type="t3.small", agent_environment=SETTINGS, agent_module="tests.system.crashing_agent")
    made = KilledNode(vpc)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("action", "before_count", "after_count"), CALLS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_nothing_is_lost(killed: KilledNode, action: str, before_count: int, after_count: int, *, after: bool) -> None:
    killed.become(before_count)
    with killed.control.fault(action, times=1, kind="hang", after=after) as hit_count:
        killed.come() if after_count > before_count else killed.go()
        eventually_equal(hit_count, 1)
        restart(killed.node.socket, None, kill=True)
    killed.settle()
    killed.ping()
    assert killed.sweep() == ((action, after) in LEAKING)
    assert not any(killed.vpc.source_check_drops().values())
