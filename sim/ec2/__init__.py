"""The EC2 Query API on the wire.

Each action is described in the EC2 API reference on the page `API_<action>.html`; parameters, elements and error codes
follow it. What is left out, or different on purpose:

- An action or parameter that is not simulated is refused (InvalidAction, UnknownParameter), never ignored. Exceptions
  that are read and change nothing: `Force` of DetachNetworkInterface, `IncludeManagedResources` of Describe*.
- `DryRun` goes further than a check of permissions: DryRunOperation means that the whole request would have succeeded.
  It is accepted by every action, also by those whose page does not list it.
- A client token is remembered for as long as the ENI it made exists.
- Signatures are not verified; every credential may do everything. A scripted fault (`sim.faults`) says otherwise.
- The order of results is that of their identifiers. EC2 promises none.
- InvalidNetworkInterfaceID.NotFound names the first unknown ENI, as EC2 does, not all of them.
- Attachments: DeviceIndex has no upper bound but the number of places. Only interfaces of the plain type exist: no
  trunk, branch or EFA interfaces, no public addresses.

Messages that clients are known to read (exhausted subnets, limits, an ENI in use, a taken device index) are EC2's own
words as users quote them in bug reports; for the others only the code is certain.
"""
