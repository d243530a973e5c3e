"""Taking an ENI away in two requests: detach, then delete once EC2 has let go of it.

EC2 has no event for "detached". IMDS stops listing the ENI's MAC when it is, and asking IMDS costs nothing of the
account's request quota, so we watch that and delete afterwards; refused deletes are repeated. Nobody else would do it:
an ENI that is detached and not deleted is not listed as this instance's any more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from agent.cloud.errors import says_in_use
from agent.errors import AgentError, Cause, CloudDenied, CloudFailed, CloudGone
from agent.ipam.model import EniId, Mac
from agent.ports.cloud import Metadata
from agent.runtime.log import event_logger

_log = event_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a removal waits for what.

    poll_s: between two looks at IMDS. unlisted_s: until the delete is tried although IMDS still lists the ENI.
    settle_s: from IMDS not listing it to the delete; EC2's own view follows a little later.
    retry_s: after the first refused delete; doubles up to eight times that, with jitter. whole_s: for everything.

    The defaults fit what detaching takes on real instances, 1 to 10 s. (The AWS plugin waits a fixed 2 s, then retries
    for up to 303 s.)
    """

    poll_s: float = 0.5
    unlisted_s: float = 15.0
    settle_s: float = 1.0
    retry_s: float = 2.0
    whole_s: float = 120.0


async def remove(
    *,
    eni_id: EniId,
    mac: Mac,
    detach: Callable[[], Awaitable[object]] | None,
    delete: Callable[[], Awaitable[object]],
    metadata: Metadata,
    patience: Patience,
) -> None:
    """Detach and delete. An attachment or an ENI that is gone already is success.

    detach: None for an ENI that is not attached.

    Raises: what detach raised; CloudDenied from the delete; CloudFailed(ec2_unavailable) with the last refusal when
    EC2 would not delete it within `patience.whole_s`.
    """
    last: AgentError | None = None
    unanswered: AgentError | None = None
    try:
        async with asyncio.timeout(patience.whole_s):
            if detach is not None:
                unanswered = await _detach(detach)
                await _wait_until_unlisted(mac, metadata, patience)
            for attempt in count():
                try:
                    await delete()
                except CloudGone:
                    return
                except CloudDenied:
                    raise
                except CloudFailed as error:
                    last = error
                    _log.info("eni_delete_refused", eni_id=eni_id, attempt=attempt + 1, in_use=says_in_use(error))
                else:
                    return
                await asyncio.sleep(patience.retry_s * 2 ** min(attempt, 3) * random.uniform(0.75, 1.25))
    except TimeoutError as timeout:
        if unanswered is not None and last is not None and says_in_use(last):
            last = unanswered  # it is in use because it was not detached
        raise CloudFailed(
            last.cause if last else Cause.EC2_UNAVAILABLE,
            f"{eni_id} was not deleted within {patience.whole_s:g} s: {last.message if last else 'EC2 did not answer'}",
            evidence={**(last.evidence if last else {}), "eni_id": eni_id, "waited_s": patience.whole_s},
            remedy="if it stays, delete the detached network interface by hand",
        ) from (last or timeout)


async def _detach(detach: Callable[[], Awaitable[object]]) -> AgentError | None:
    """The error of a request that nobody knows the outcome of."""
    try:
        await detach()
    except CloudFailed as error:
        # Gone, detaching already, or nobody knows: the delete will tell.
        if error.cause is Cause.EC2_UNAVAILABLE:
            return error
        if not (error.evidence.get("code") == "IncorrectState" or isinstance(error, CloudGone)):
            raise
    return None


async def _wait_until_unlisted(mac: Mac, metadata: Metadata, patience: Patience) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(patience.unlisted_s):
            while await _is_listed(mac, metadata):  # noqa: ASYNC110  # IMDS has no events
                await asyncio.sleep(patience.poll_s)
    await asyncio.sleep(patience.settle_s)


async def _is_listed(mac: Mac, metadata: Metadata) -> bool:
    """True also while IMDS does not answer: the delete is tried after `unlisted_s` in any case."""
    try:
        return await metadata.subnet_cidr(mac) is not None
    except CloudFailed:
        return True
