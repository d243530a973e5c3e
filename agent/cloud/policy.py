"""What an operator may choose about ENIs and subnets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudPolicy:
    """Settings of the cloud adapter, frozen for the life of the agent.

    cluster_name: of the EKS cluster; empty when unknown.
    additional_eni_tags: for the ENIs we make; later ones win over our own, but for Kubernetes' keys.
    manage_untagged_eni: True takes an attached ENI that carries neither our tag nor `no_manage` for ours.
    subnet_discovery: True makes ENIs in any tagged subnet of the zone, False only in the node's own.
    leak_cleanup: True deletes leaked ENIs.
    provisioning: False leaves ENIs and addresses to somebody else: EC2 is observed, never changed.
    imds_only: True does not even ask EC2: instance metadata says what there is.
    manage_non_schedulable: True attaches and detaches on a cordoned node, too.
    """

    cluster_name: str = ""
    additional_eni_tags: tuple[tuple[str, str], ...] = ()
    manage_untagged_eni: bool = True
    subnet_discovery: bool = True
    leak_cleanup: bool = True
    provisioning: bool = True
    imds_only: bool = False
    manage_non_schedulable: bool = False
