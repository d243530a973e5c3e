"""The acceptance list: one row, one path a packet may take through the node.

A row reads: CLIENT asks TARGET; the server behind it sees PEER as the source; while the exchange runs, the node sends
on the ENIs in BY and on no other ("-": the exchange never leaves the node). NEEDS says what of
ours the row cannot do without: the nftables table (`table`), rule 1024 (`mark`), the other routes and rules (`routes`),
or nothing. Take it away, and the row must fail; take something else away, and the row must still hold.

Names of places are explained in world.py. Targets: a place (port 8080), `V50` `V60` `V70` (Services whose endpoint is
B2, X, P), `:30080` (node port to B1, the client's source kept), `:30081` (to B1, masqueraded), `:30082` (to P, the
same), `@ADDRESS:31000` (host port of B1), `@ADDRESS:31001` (host port of A1, bound to N's address).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

ALL: Final = ("tcp", "udp", "icmp")
PORTS: Final = ("tcp", "udp")
"""Services translate ports, and ICMP has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """peer: a name of a place; empty when the exchange must not work. port_kept: None when it does not matter."""

    id: str
    client: str
    target: str
    peer: str
    by: frozenset[str]
    needs: frozenset[str]
    protocols: tuple[str, ...]
    port_kept: bool | None


def _rows(text: str) -> tuple[Row, ...]:
    return tuple(map(_row, filter(None, (line.strip() for line in text.splitlines()))))


def _row(line: str) -> Row:
    name, client, target, peer, by, needs, *port = line.split()
    return Row(
        id=name,
        client=client,
        target=target,
        peer=peer if peer != "nobody" else "",
        by=frozenset(by.split("+")) if by != "-" else frozenset(),
        needs=frozenset(needs.split("+")),
        protocols=PORTS if target[0] in "V:@" else ALL,
        port_kept={"": None, "kept": True, "random": False}[port[0] if port else ""],
    )


SNAT: Final = _rows("""
    P1    A1  A2      A1  -     routes
    P2a   A1  B1      A1  -     routes
    P2b   B1  A1      B1  -     routes
    P3    B1  B2      B1  -     routes
    P4    A1  P       A1  ens5  routes
    P5    B1  P       B1  ens6  routes+table
    P6a   P   A1      P   ens5  routes
    P6b   P   B1      P   ens6  routes+table
    P7    C   B1      C   ens6  routes+table
    P7a   C   A1      C   ens5  routes
    P8    A1  X       N   ens5  routes+table   random
    P9    B1  X       N   ens5  routes+table+mark   random
    P10a  A1  C       N   ens5  routes+table
    P10b  B1  C       N   ens5  routes+table+mark
    P12a  A1  META    N   ens5  routes+table
    P12b  B1  META    N   ens5  routes+table+mark
    P13a  N   A1      N   -     routes
    P13b  N   B1      N   -     routes
    P14a  A1  N       A1  -     routes
    P14b  B1  N       B1  -     routes
    P15a  A1  N2      A1  -     routes
    P15b  B1  N2      B1  -     routes
    P16   P   N2      P   ens6  routes
    P17   N   X       N   ens5  nothing kept
    P18a  A1  V50     A1  -     routes
    P18b  B1  V50     B1  -     routes
    P19   B1  V70     B1  ens6  routes+table
    P20a  A1  V60     N   ens5  routes+table
    P20b  B1  V60     N   ens5  routes+table+mark
    P21   N   V50     N   -     routes
    N1    X   :30080  X   ens5  routes+mark
    N2    X   :30081  N   ens5  routes+mark
    N3    X   :30082  N   ens5  nothing
    N4a   P   :30080  P   ens5  routes+mark
    N4b   P   :30081  N   ens5  routes+mark
    N5    C   :30080  C   ens5  routes+mark
    N6a   B2  :30080  B2  -     routes
    N6b   B1  :30081  N   -     routes
    N7    N   :30080  N   -     routes
    H1a   X   @N:31000   X       ens5  routes+table+mark
    H1b   P   @N:31000   P       ens5  routes+table+mark
    H2a   X   @N:31001   X       ens5  routes+table
    H2b   P   @N2:31001  nobody  ens6  routes
    H3    B1  @N:31000   N       -     routes+table
    H4a   B2  @N:31000   B2      -     routes+table
    H4b   N   @N:31000   N       -     routes+table
    H4c   N   @lo:31000  N       -     routes+table
""")
"""The default: the node translates. N8 (UDP) is the protocols of N1, N2, P8 and P9."""


def _text_of(rows: tuple[Row, ...], other: tuple[Row, ...]) -> str:
    """The rows that are not in `other`, as text."""
    return "".join(
        f"{row.id} {row.client} {row.target} {row.peer or 'nobody'} {'+'.join(row.by) or '-'} routes\n"
        for row in rows
        if row not in other
    )


def changed(rows: tuple[Row, ...], text: str) -> tuple[Row, ...]:
    """The rows with some of them replaced by others of the same id."""
    new = {row.id: row for row in _rows(text)}
    assert new.keys() <= {row.id for row in rows}
    return tuple(new.get(row.id, row) for row in rows)


EXTERNAL_SNAT: Final = changed(
    SNAT,
    """
    P8    A1  X       A1  ens5  routes kept
    P9    B1  X       B1  ens6  routes  kept
    P10a  A1  C       A1  ens5  routes
    P10b  B1  C       B1  ens6  routes
    P12a  A1  META    A1  ens5  routes
    P12b  B1  META    B1  ens6  routes
    P20a  A1  V60     A1  ens5  routes
    P20b  B1  V60     B1  ens6  routes
""",
)
"""A NAT gateway translates: everything leaves by the pod's own ENI with its own address."""

EXCLUDED: Final = changed(
    SNAT,
    """
    P10a  A1  C       A1  ens5  routes
    P10b  B1  C       B1  ens6  table
""",
)
"""P11: the routed network of C is in AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS."""

NODE_PORT_OFF: Final = changed(
    SNAT,
    """
    N1    X   :30080    nobody  ens6  routes
    N2    X   :30081    nobody  ens6  routes
    N4a   P   :30080    nobody  ens6  routes
    N4b   P   :30081    nobody  ens6  routes
    N5    C   :30080    nobody  ens6  routes
    H1a   X   @N:31000  nobody  ens6  routes
    H1b   P   @N:31000  nobody  ens6  routes
""",
)
"""AWS_VPC_CNI_NODE_PORT_SUPPORT=false: a pod of a secondary ENI answers by that ENI, with the node's address, and the
VPC drops it; masqueraded or not, because the route is chosen after the client's address and before the node's is put
back. The AWS plugin's own layout (bench/aws_layout.py) without its mark for the primary ENI does the same."""

NODE_PORT_OFF_EXTERNAL_SNAT: Final = changed(EXTERNAL_SNAT, _text_of(NODE_PORT_OFF, SNAT))
"""Neither: nothing is marked, and there is no rule 1024."""

EXTERNAL_SERVICES: Final = changed(
    SNAT,
    """
    P7    C   B1      nobody  ens5  routes
    P10b  B1  C       N       ens5  routes+table
    N5    C   :30080  C       ens5  routes
""",
)
"""AWS_EXTERNAL_SERVICE_CIDRS has the routed network of C: what goes there takes the primary ENI without a mark. So do
answers to what came in by another ENI, as in the AWS plugin: the setting is for networks that pods call."""

CUSTOM: Final = changed(
    SNAT,
    """
    P4    A1  P       A1  ens6  routes+table
    P6a   P   A1      P   ens6  routes+table
    P7a   C   A1      C   ens6  routes+table
    P8    A1  X       N   ens5  routes+table+mark   random
    P10a  A1  C       N   ens5  routes+table+mark
    P12a  A1  META    N   ens5  routes+table+mark
    P20a  A1  V60     N   ens5  routes+table+mark
    H2a   X   @N:31001   X   ens5  routes+table+mark
""",
)
"""Custom networking: no pod on the primary ENI, and the other one is in a subnet of its own."""

PORT_KEPT: Final = tuple(replace(row, port_kept=True) if row.id in ("P8", "P9") else row for row in SNAT)
"""AWS_VPC_K8S_CNI_RANDOMIZESNAT=none: the client's own port, when it is free."""

CONTROLS: Final = {
    "table": "nft delete table inet enoki",
    "mark": "ip rule del pref 1024",
    "routes": "for rule in 512 1536 32765; do ip rule del pref $rule protocol 205; done; nft flush table inet enoki",
}
"""Negative controls: how to take away what rows need."""
