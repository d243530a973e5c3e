"""The acceptance list with real packets, beside kube-proxy in each of its forms, and its negative controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import pytest

from agent.datapath.policy import DatapathPolicy, SnatPort
from bench import kube_proxy as services
from sim.fabric import INTERNET_ADDRESS
from tests.kernel.acceptance import rows
from tests.kernel.acceptance.probe import ANSWER_S, SILENCE_S, Answer, Path, ask
from tests.kernel.acceptance.rows import Row
from tests.kernel.acceptance.world import CUSTOM, OTHER_NODE, PLAIN, PREFIXES, Siting, World, built


def _policy(**settings: object) -> DatapathPolicy:
    return DatapathPolicy(names_directory=None, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """kube_proxy: a form, and whether its rules were there `before` ours or came `after`.

    without: what is taken away again, see `rows.CONTROLS`.
    """

    id: str
    rows: tuple[Row, ...] = rows.SNAT
    policy: DatapathPolicy = field(default_factory=_policy)
    kube_proxy: str = "nftables"
    before: bool = True
    without: str = ""
    mtu: int = 9001
    siting: Siting = PLAIN


VARIANTS: Final = (
    *(
        Variant(id=f"{form}-{'before' if before else 'after'}", kube_proxy=form, before=before)
        for form in services.FORMS
        for before in (True, False)
    ),
    *(
        Variant(id=f"without-{what}-{form}", kube_proxy=form, without=what)
        for form in services.FORMS
        for what in rows.CONTROLS
        # What our routes and rules do without hardly depends on kube-proxy.
        if what == "table" or form == "nftables"
    ),
    Variant(id="external-snat", rows=rows.EXTERNAL_SNAT, policy=_policy(external_snat=True)),
    Variant(id="excluded", rows=rows.EXCLUDED, policy=_policy(exclude_snat_cidrs=(IPv4Network("172.31.0.0/16"),))),
    Variant(id="snat-port-hashed", policy=_policy(randomize_snat=SnatPort.HASHED)),
    Variant(id="snat-port-kept", rows=rows.PORT_KEPT, policy=_policy(randomize_snat=SnatPort.KEPT)),
    Variant(id="node-port-off", rows=rows.NODE_PORT_OFF, policy=_policy(node_port_support=False)),
    Variant(
        id="node-port-off-external-snat",
        rows=rows.NODE_PORT_OFF_EXTERNAL_SNAT,
        policy=_policy(node_port_support=False, external_snat=True),
    ),
    *(
        Variant(
            id=f"external-services{'-without-mark' * bool(without)}",
            rows=rows.EXTERNAL_SERVICES,
            policy=_policy(external_service_cidrs=(IPv4Network("172.31.0.0/16"),)),
            without=without,
        )
        for without in ("", "mark")
    ),
    Variant(id="prefixes", siting=PREFIXES),
    *(
        Variant(
            id=f"custom-networking{f'-without-{without}' * bool(without)}",
            rows=rows.CUSTOM,
            siting=CUSTOM,
            without=without,
        )
        for without in ("", "mark", "table")
    ),
    Variant(id="connmark", policy=_policy(primary_mark=0x100)),
    Variant(id="veth-prefix", policy=_policy(veth_prefix="pod")),
    Variant(id="mtu-1300", policy=_policy(eni_mtu=1300), mtu=1300),
    Variant(id="mtu-576", policy=_policy(eni_mtu=576), mtu=576),
)


class Worlds:
    """One world at a time: the tests come ordered by variant, and a variant's world is built once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._built: tuple[str, World] | None = None

    def of(self, variant: Variant) -> World:
        if self._built is None or self._built[0] != variant.id:
            self.close()
            self._built = variant.id, self._stack.enter_context(built_beside_kube_proxy(variant))
        return self._built[1]

    def close(self) -> None:
        self._built = None
        self._stack.close()


@contextmanager
def built_beside_kube_proxy(variant: Variant) -> Iterator[World]:
    kube_proxy = services.FORMS[variant.kube_proxy](
        services.services(
            local=variant.siting.secondary_pods["B2"],
            node_port_pod=variant.siting.secondary_pods["B1"],
            remote=OTHER_NODE,
            outside=INTERNET_ADDRESS,
        )
    )
    before, after = (kube_proxy, "") if variant.before else ("", kube_proxy)
    with built(
        variant.policy,
        siting=variant.siting,
        mtu=variant.mtu,
        before=before,
        after=f"{after}\n{rows.CONTROLS.get(variant.without, '')}",
    ) as made:
        if variant.policy.external_snat:
            made.give_elastic_addresses()
        yield made


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    made = Worlds()
    try:
        yield made
    finally:
        made.close()


LOOPBACK: Final = IPv4Address("127.0.0.1")
HOST_PORTS: Final = {31000: "B1", 31001: "A1"}
TARGETS: Final = {
    "V50": (IPv4Address("172.20.0.50"), services.PORT, "B2"),
    "V60": (IPv4Address("172.20.0.60"), services.PORT, "X"),
    "V70": (IPv4Address("172.20.0.70"), services.PORT, "P"),
    ":30080": (None, 30080, "B1"),
    ":30081": (None, 30081, "B1"),
    ":30082": (None, 30082, "P"),
}


def path_of(row: Row, world: World) -> Path:
    client = world.places[row.client]
    address: IPv4Address | None
    if row.target.startswith("@"):
        where, _, number = row.target[1:].partition(":")
        address, port = LOOPBACK if where == "lo" else world.places[where].address, int(number)
        server = HOST_PORTS[port]
    else:
        address, port, server = TARGETS.get(row.target, (None, services.ENDPOINT_PORT, row.target))
        if address is None:
            address = world.places["N" if row.target.startswith(":") else row.target].address
    return Path(
        client=client.netns,
        source=client.address if row.client == "C" else None,
        target=address,
        port=port,
        server=world.places[server].netns,
        server_port=services.ENDPOINT_PORT,
    )


def _cases() -> list[object]:
    return [
        pytest.param(variant, row, protocol, id=f"{variant.id}-{row.id}-{protocol}")
        for variant in VARIANTS
        for row in variant.rows
        for protocol in row.protocols
    ]


@pytest.mark.parametrize(("variant", "row", "protocol"), _cases())
def test_path(worlds: Worlds, variant: Variant, row: Row, protocol: str) -> None:
    world = worlds.of(variant)
    path = path_of(row, world)
    # A row that needs what is not there must fail: the same expectations, the other way round.
    should_hold = variant.without not in row.needs
    wait_s = ANSWER_S if should_hold and row.peer else SILENCE_S
    world.forget_what_left()
    answer = ask(protocol, path, wait_s)
    left = world.left_by()
    dropped_count = world.newly_dropped_count()
    wrong = list(differences(row, world, answer, left))
    if should_hold and row.peer and dropped_count:
        wrong.append("the fabric dropped packets of the node")
    assert bool(wrong) != should_hold, wrong or f"holds without {variant.without}: {answer}, sent by {left}"


def differences(row: Row, world: World, answer: Answer | None, left: dict[str, set[str]]) -> Iterator[str]:
    """What is not as the row says."""
    expected = world.places[row.peer].address if row.peer else None
    seen = answer.peer if answer else None
    if seen != expected:
        yield f"the server saw {seen}, not {expected}"
    if left.keys() != row.by:
        yield f"the node sent by {left}, not by {sorted(row.by)}"
    if answer and None not in (row.port_kept, answer.port_kept) and row.port_kept != answer.port_kept:
        yield f"the client's port was {'' if answer.port_kept else 'not '}kept"
