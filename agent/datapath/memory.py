"""What this agent has made of the node's namespace, so that it can be compared with what is there.

A cache like the ledger: filled by what is wired from now on and, after a start, by one look at the kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from agent.datapath.desired import EniPlan, HostSide, NodeDesired, RuleSpec
from agent.datapath.messages import LinkSeen
from agent.ipam.model import AttachmentKey, Mac


class HostMemory:
    """Read anywhere. Changed under `lock` where a repair must not come between; a thread may hold it for some
    milliseconds, so the event loop never takes it."""

    def __init__(self, eni_mtu: int) -> None:
        self.lock = threading.RLock()
        self._eni_mtu = eni_mtu
        self._primary_mac = Mac("")
        self._rules: tuple[RuleSpec, ...] = ()
        self._enis: dict[int, EniPlan] = {}
        self._eni_links: dict[int, str] = {}
        self._pods: dict[int, HostSide] = {}
        self._by_key: dict[AttachmentKey, int] = {}

    def prepared(self, primary_mac: Mac, rules: tuple[RuleSpec, ...]) -> None:
        self._primary_mac, self._rules = primary_mac, rules

    @property
    def primary_mac(self) -> Mac:
        """Empty before the node is prepared."""
        return self._primary_mac

    def eni(self, plan: EniPlan) -> None:
        self._enis[plan.table_id] = plan

    def forget_eni(self, plan: EniPlan) -> None:
        with self.lock:
            self._enis.pop(plan.table_id, None)

    def pod(self, side: HostSide) -> None:
        with self.lock:
            self._forget_index(self._by_key.get(side.key, 0))
            self._pods[side.ifindex] = side
            self._by_key[side.key] = side.ifindex

    def adopt(self, sides: Iterable[HostSide]) -> None:
        """These exist, by a look that was taken under `lock`. What this agent wired itself is known better."""
        with self.lock:
            for side in sides:
                if side.ifindex not in self._pods:
                    self._pods[side.ifindex] = side
                    self._by_key[side.key] = side.ifindex

    def forget_pod(self, key: AttachmentKey) -> int | None:
        """The interface index it had."""
        with self.lock:
            ifindex = self._by_key.get(key)
            self._forget_index(ifindex or 0)
            return ifindex

    def forget_link(self, ifindex: int) -> None:
        """The kernel says that it is gone. Without the lock, which a thread may hold for a while: the event loop calls
        this, and a repair of a link that is gone fails by itself."""
        self._forget_index(ifindex)

    def side_of(self, ifindex: int) -> HostSide | None:
        return self._pods.get(ifindex)

    def has_eni(self, mac: Mac) -> bool:
        return mac == self._primary_mac or any(plan.mac == mac for plan in list(self._enis.values()))

    def has_eni_address(self, packed: bytes) -> bool:
        """Whether an address, in network byte order, is a secondary ENI's own."""
        return any(plan.address.packed == packed for plan in list(self._enis.values()))

    def is_eni_as_made(self, link: LinkSeen) -> bool:
        """Whether the link of an ENI is up, as large as it should be, and called as at the last look."""
        return link.up and link.mtu == self._eni_mtu and self._eni_links.get(link.ifindex) == link.ifname

    def looked_at(self, eni_links: Mapping[int, str]) -> None:
        """The links that the ENIs have: interface index and name."""
        self._eni_links = dict(eni_links)

    def knows_link(self, ifindex: int) -> bool:
        return ifindex in self._pods or ifindex in self._eni_links

    def has_table(self, table_id: int) -> bool:
        return table_id in self._enis

    def desired(self) -> NodeDesired:
        with self.lock:
            return NodeDesired(
                primary_mac=self._primary_mac,
                eni_mtu=self._eni_mtu,
                rules=self._rules,
                enis=tuple(self._enis.values()),
                pods=tuple(self._pods.values()),
            )

    def while_wanted(self, pod: int, table_id: int, work: Callable[[], None]) -> bool:
        """Do `work` unless the pod or the ENI it is for (0: for neither) has been forgotten meanwhile; whether it was
        done."""
        with self.lock:
            if (pod and pod not in self._pods) or (table_id and table_id not in self._enis):
                return False
            work()
            return True

    def _forget_index(self, ifindex: int) -> None:
        side = self._pods.pop(ifindex, None)
        if side is not None and self._by_key.get(side.key) == ifindex:
            del self._by_key[side.key]
