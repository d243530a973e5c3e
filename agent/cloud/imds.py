"""The instance metadata service, version 2: `agent.ports.cloud.Metadata` on aiohttp.

EC2 User Guide, "Use the Instance Metadata Service": a PUT to /latest/api/token with the wanted life in seconds gives a
token; every GET carries it; 401 means the token is not valid (any more). Answers are plain text; a list has one item
per line. `AWS_EC2_METADATA_SERVICE_ENDPOINT` is the SDKs' name for another address.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from time import monotonic
from types import TracebackType
from typing import Self

import aiohttp

from agent.errors import Cause, CloudFailed
from agent.ipam.model import Instance, Mac

DEFAULT_ENDPOINT = "http://169.254.169.254"
_TOKEN_LIFE_S = 21_600
"""The most IMDS gives. Renewed when a tenth of it is left."""
_REQUEST_S = 2.0
"""For one request. IMDS is on the host of the instance: it answers within milliseconds, or it limits us (it does not
say how many requests per second are too many, only that the sender should back off)."""
_DEADLINE_S = 10.0
"""For one item with its retries."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class _TokenRefused(Exception):
    """IMDS answered 401."""


class _Unanswered(Exception):
    """IMDS answered with neither the item, nor 404, nor 401."""


class ImdsMetadata:
    """Implements `agent.ports.cloud.Metadata`. Use as an async context manager; the methods work inside only."""

    def __init__(self, *, endpoint: str = DEFAULT_ENDPOINT, clock: Callable[[], float] = monotonic) -> None:
        """endpoint: scheme and authority. clock: monotonic seconds, for the token's life."""
        self._endpoint = endpoint.rstrip("/")
        self._clock = clock
        self._token = ""
        self._token_renewal_s = float("-inf")
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        self._http = aiohttp.ClientSession(timeout=timeout, headers={"User-Agent": "enoki"})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def instance(self) -> Instance:
        """See `Metadata.instance`. Four items: the identity document, the MAC, and the VPC's id and CIDRs."""
        document = await self._required("dynamic/instance-identity/document")
        mac = Mac((await self._required("meta-data/mac")).strip().lower())
        vpc_id = (await self._required(f"meta-data/network/interfaces/macs/{mac}/vpc-id")).strip()
        vpc_cidrs = await self.vpc_cidrs(mac)
        try:
            identity = json.loads(document)
            return Instance(
                instance_id=identity["instanceId"],
                account_id=identity["accountId"],
                instance_type=identity["instanceType"],
                region=identity["region"],
                zone=identity["availabilityZone"],
                primary_mac=mac,
                primary_address=IPv4Address(identity["privateIp"]),
                vpc_id=vpc_id,
                vpc_cidrs=vpc_cidrs,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise self._useless("dynamic/instance-identity/document", error) from error

    async def vpc_cidrs(self, mac: Mac) -> tuple[IPv4Network, ...]:
        """The IPv4 networks of the VPC the ENI is in, now; at least one.

        Raises: CloudFailed(imds_unavailable) after its deadline; the caller retries.
        """
        path = f"meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks"
        text = await self._required(path)
        try:
            cidrs = tuple(IPv4Network(line) for line in text.split())
        except ValueError as error:
            raise self._useless(path, error) from error
        if not cidrs:
            raise self._useless(path, "it is empty")
        return cidrs

    async def subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        """See `Metadata.subnet_cidr`. Raises: CloudFailed(imds_unavailable)."""
        path = f"meta-data/network/interfaces/macs/{mac}/subnet-ipv4-cidr-block"
        text = await self.item(path)
        try:
            return None if text is None else IPv4Network(text.strip())
        except ValueError as error:
            raise self._useless(path, error) from error

    async def _required(self, path: str) -> str:
        text = await self.item(path)
        if text is None:
            raise self._useless(path, "there is no such item (404)")
        return text

    def _useless(self, path: str, because: Exception | str) -> CloudFailed:
        return CloudFailed(
            Cause.IMDS_UNAVAILABLE,
            f"IMDS has nothing useful at {path}: {because}",
            evidence={"endpoint": self._endpoint, "path": path},
            remedy="check that the endpoint is the instance metadata service of an instance in a VPC",
            retry_after_s=5,
        )

    async def item(self, path: str) -> str | None:
        """The text at `/latest/<path>`, or None when IMDS says there is none (404).

        Raises: CloudFailed(imds_unavailable) after its deadline.
        """
        last: Exception | None = None
        attempts = 0
        try:
            async with asyncio.timeout(_DEADLINE_S):
                while True:
                    attempts += 1
                    try:
                        return await self._get(path)
                    except (aiohttp.ClientError, TimeoutError, _Unanswered) as error:
                        last = error
                    except _TokenRefused as error:
                        last = error
                        # An instance that was stopped and started does not know its old tokens.
                        self._token_renewal_s = float("-inf")
                    pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempts)
                    await asyncio.sleep(random.uniform(0, pause_s))
        except TimeoutError as timeout:
            raise CloudFailed(
                Cause.IMDS_UNAVAILABLE,
                f"IMDS did not answer for {path}: {last!r}",
                evidence={"endpoint": self._endpoint, "path": path, "attempts": attempts, "waited_s": _DEADLINE_S},
                remedy="check that the instance's metadata options have the HTTP endpoint enabled, and that the agent"
                " runs in the host's network (or the hop limit is 2)",
                retry_after_s=5,
            ) from (last or timeout)

    async def _get(self, path: str) -> str | None:
        if self._clock() >= self._token_renewal_s:
            await self._renew_token()
        headers = {"X-aws-ec2-metadata-token": self._token}
        async with self._http.get(f"{self._endpoint}/latest/{path}", headers=headers) as answer:
            match answer.status:
                case 200:
                    return await answer.text()
                case 404:
                    return None
                case 401:
                    raise _TokenRefused("IMDS refused the token (401)")
                case status:
                    raise _Unanswered(f"IMDS answered {status}")

    async def _renew_token(self) -> None:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
        asked_s = self._clock()
        async with self._http.put(f"{self._endpoint}/latest/api/token", headers=headers) as answer:
            if answer.status != 200:
                raise _Unanswered(f"IMDS answered {answer.status} to a token request")
            self._token = await answer.text()
        self._token_renewal_s = asked_s + _TOKEN_LIFE_S * 0.9
