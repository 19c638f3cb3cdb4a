"""Products: acceptance rules and calibration."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from refdiff.memory.records.defect_names import MAX_NAME
from refdiff.server.web.access import Admin, TheService, Viewer
from refdiff.server.web.errors import Refused, responses
from refdiff.tools.inspection.specification import ProductSpec


class ComponentNameBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(description=f"1 to {MAX_NAME} letters, digits, blanks or any of .,/()+&'#%_-")


router = APIRouter(prefix="/v1/products", tags=["products"])


@router.get("", responses=responses())
def list_products(service: TheService, _caller: Viewer) -> list[str]:
    return service.products()


@router.get("/{name}", responses=responses(404))
def get_product(service: TheService, _caller: Viewer, name: str) -> dict[str, Any]:
    """Specification, golden samples by status, and calibration (null before the first inspection)."""
    return service.product(name)


@router.put("/{name}/spec", responses=responses(409))
def set_spec(
    service: TheService,
    caller: Admin,
    name: str,
    spec: ProductSpec,
    if_match: Annotated[
        str | None, Header(description="`spec_version` that this was made from.", max_length=32)
    ] = None,
) -> dict[str, Any]:
    """Replace scale, zones and limits, as `refdiff product set` does. With `If-Match`, only if nobody has set them since."""
    version = (if_match or "*").strip().removeprefix("W/").strip('"')
    if version != "*" and not version.isdecimal():
        raise Refused(422, f"If-Match: {if_match!r} is no spec_version; send the number that the product has")
    instead_of = None if version == "*" else int(version)
    return service.set_spec(name, spec.model_dump(mode="json"), caller.name, instead_of)


@router.put("/{name}/components/{component:path}", responses=responses(404))
def name_component(
    service: TheService, caller: Admin, name: str, component: str, body: ComponentNameBody
) -> dict[str, Any]:
    """Call a component of the newest calibration something, by its number or its present name. Later reports say "clip: 5 of
    6"; it decides nothing. The name outlives a calibration that finds the component again, under whatever number."""
    return service.name_component(name, component, body.name, caller.name)


@router.delete("/{name}/components/{component:path}", responses=responses(404))
def forget_component_name(service: TheService, caller: Admin, name: str, component: str) -> dict[str, Any]:
    """Take the name of a component away; also of one that is not recognised any more, by its name."""
    return service.name_component(name, component, None, caller.name)


@router.post("/{name}/calibration", responses=responses(404))
def calibrate(
    service: TheService,
    caller: Admin,
    name: str,
    alpha: Annotated[float | None, Query(gt=0, lt=0.5)] = None,
) -> dict[str, Any]:
    """Calibrate: score the golden samples against each other. Takes about 0.15 s per sample on two cores."""
    return service.calibrate(name, alpha, by=caller.name)


@router.post("/{name}/network", status_code=202, responses=responses(404, 429))
def fit(service: TheService, caller: Admin, name: str) -> dict[str, Any]:
    """Begin to fit the difference network to the product, as `refdiff fit` does; takes minutes, and waits while there is
    something to inspect. `fitting` of the product says how far it is, and what came of it."""
    return service.fit(name, caller.name)


@router.delete("/{name}/network", status_code=204, responses=responses(404))
def forget_network(service: TheService, caller: Admin, name: str) -> Response:
    """Let the shared network inspect the product again, and end a fit that runs."""
    service.forget_network(name, caller.name)
    return Response(status_code=204)


@router.delete("/{name}/fitting", status_code=204, responses=responses(404))
def end_fit(service: TheService, caller: Admin, name: str) -> Response:
    """End the fit that runs; what is in use stays, and none begins by itself until somebody asks for one."""
    service.end_fit(name, caller.name)
    return Response(status_code=204)
