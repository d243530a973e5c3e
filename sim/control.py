"""The simulator's own HTTP endpoint: see everything, and change what no client of EC2 could.

| route | what |
|---|---|
| GET /state | the whole VPC now, with free addresses and free /28 blocks of each subnet |
| GET /calls, DELETE /calls | EC2 calls: counts by action and outcome, and the calls (`?action=`); forget them |
| GET /budget | tokens left in each bucket that was used |
| POST /faults, GET /faults, DELETE /faults, DELETE /faults/{id} | the script of `sim.faults` |
| GET /latency, PUT /latency | seconds per action, and the timings of `sim.model.config` |
| POST /instances, DELETE /instances/{id} | launch, terminate |
| PUT /tags/{resource id} | replace all tags of one resource |

Times are seconds since the Unix epoch. An error of the VPC is answered with its status and `{"code", "message"}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.requests import Request
from fastapi.responses import JSONResponse

from sim.ec2.budget import Budget
from sim.ec2.calls import CallLog
from sim.ec2.latency import Latency
from sim.faults import Effect, Fault, Faults
from sim.model.config import Timings
from sim.model.errors import Ec2Error
from sim.model.instances import RunInstance, run_instance
from sim.model.records import State, SubnetRecord
from sim.model.space import free_prefixes
from sim.model.tags import create_tags, delete_tags
from sim.model.vpc import Vpc


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFault:
    """As `sim.faults.Fault`, without what the simulator fills in."""

    action: str
    effect: Effect
    skip_count: int = 0
    times: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstance:
    """What to launch; the VPC's first subnet when none is named."""

    instance_type: str
    subnet_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    metadata_hop_limit: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How long everything takes."""

    by_action_s: dict[str, float] = field(default_factory=dict)
    default_s: float = 0.0
    timings: Timings = field(default_factory=Timings)


def create_app(
    vpc: Vpc,
    *,
    clock: Callable[[], float],
    faults: Faults,
    budget: Budget | None,
    latency: Latency,
    calls: CallLog,
) -> FastAPI:
    """The application, over the same parts as the EC2 endpoint's."""
    app = FastAPI(title="Simulated VPC", openapi_url=None)

    @app.exception_handler(Ec2Error)
    async def refused(_: Request, problem: Ec2Error) -> JSONResponse:
        return JSONResponse({"code": problem.code, "message": problem.message}, status_code=problem.http_status)

    @app.get("/budget")
    async def get_budget() -> dict[str, float]:
        return {} if budget is None else budget.levels()

    _add_vpc_routes(app, vpc, clock)
    _add_call_routes(app, calls)
    _add_fault_routes(app, faults)
    _add_speed_routes(app, vpc, latency)
    return app


def _add_vpc_routes(app: FastAPI, vpc: Vpc, clock: Callable[[], float]) -> None:
    @app.get("/state")
    async def get_state() -> JSONResponse:
        vpc.advance(clock())
        return JSONResponse(dump(vpc.state))

    @app.post("/instances", status_code=201)
    async def post_instance(new: NewInstance) -> JSONResponse:
        now_s = clock()
        request = RunInstance(
            instance_type=new.instance_type,
            subnet_id=new.subnet_id or next(iter(vpc.state.subnets)),
            tags=new.tags,
            metadata_hop_limit=new.metadata_hop_limit,
        )
        made = vpc.apply(lambda state, rules: run_instance(state, rules, request, now_s=now_s), now_s=now_s)
        return JSONResponse(_json(made), status_code=201)

    @app.delete("/instances/{instance_id}", status_code=204)
    async def delete_instance(instance_id: str) -> None:
        vpc.terminate_instance(instance_id, now_s=clock())

    @app.put("/tags/{resource_id}", status_code=204)
    async def put_tags(resource_id: str, tags: dict[str, str]) -> None:
        now_s = clock()
        vpc.apply(lambda state, _: delete_tags(state, (resource_id,), {}), now_s=now_s)
        vpc.apply(lambda state, _: create_tags(state, (resource_id,), tags), now_s=now_s)


def _add_call_routes(app: FastAPI, calls: CallLog) -> None:
    @app.get("/calls")
    async def get_calls(action: str = "") -> JSONResponse:
        listed = [asdict(call) for call in calls.listed() if action in {"", call.action}]
        return JSONResponse({"counts": calls.counts(), "calls": listed})

    @app.delete("/calls", status_code=204)
    async def delete_calls() -> None:
        calls.clear()


def _add_fault_routes(app: FastAPI, faults: Faults) -> None:
    @app.get("/faults")
    async def get_faults() -> tuple[Fault, ...]:
        return faults.listed()

    @app.post("/faults", status_code=201)
    async def post_fault(new: NewFault) -> Fault:
        return faults.add(Fault(action=new.action, effect=new.effect, skip_count=new.skip_count, times=new.times))

    @app.delete("/faults", status_code=204)
    async def delete_faults() -> None:
        faults.clear()

    @app.delete("/faults/{fault_id}", status_code=204)
    async def delete_fault(fault_id: int) -> None:
        if not faults.remove(fault_id):
            raise HTTPException(status_code=404, detail=f"There is no fault {fault_id}")


def _add_speed_routes(app: FastAPI, vpc: Vpc, latency: Latency) -> None:
    @app.get("/latency")
    async def get_latency() -> Speed:
        return Speed(by_action_s=latency.by_action_s, default_s=latency.default_s, timings=vpc.timings)

    @app.put("/latency")
    async def put_latency(speed: Speed) -> Speed:
        latency.by_action_s = speed.by_action_s
        latency.default_s = speed.default_s
        vpc.timings = speed.timings
        return speed


def dump(state: State) -> dict[str, Any]:
    """The state as JSON: records by identifier, addresses as strings."""
    subnets = {subnet_id: _subnet(each) for subnet_id, each in state.subnets.items()}
    return {
        "vpc": _json(state.vpc),
        "subnets": subnets,
        "security_groups": _json(state.security_groups),
        "instances": _json(state.instances),
        "enis": {eni_id: {**_json(eni), "status": eni.status} for eni_id, eni in state.enis.items()},
        "transitions": _json(state.transitions),
    }


def _subnet(subnet: SubnetRecord) -> dict[str, Any]:
    dumped: dict[str, Any] = _json(subnet)
    del dumped["used_bits"]
    return {
        **dumped,
        "free_address_count": subnet.free_address_count,
        "free_prefix_count": len(tuple(free_prefixes(subnet))),
    }


def _json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _json(getattr(value, each.name)) for each in fields(value)}
    match value:
        case Mapping():
            return {str(key): _json(each) for key, each in value.items()}
        case tuple():
            return [_json(each) for each in value]
        case IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network():
            return str(value)
        case Enum():
            return value.value
        case _:
            return value
