"""Write a bill of materials (CycloneDX, JSON) of what RefDiff installs: its dependencies and those of its extras, but no
development tools. Needs the environment of `make install`.

    python tests/bench/sbom.py sbom.cdx.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = {"all", "browser", "demo", "dev"}  # extras


def needed(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Names of everything that these requirements install here, through all levels."""
    found: set[tuple[str, str]] = set()
    left = [(Requirement(r), extras) for r in requirements]
    while left:
        requirement, wanted = left.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in wanted or [""]):
            continue
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in found:
                continue
            found.add(key)
            try:
                left += [(Requirement(r), [extra]) for r in requires(requirement.name) or []]
            except PackageNotFoundError:  # an extra that is not installed here
                continue
    return {name for name, _ in found}


def bill_of_materials() -> dict[str, Any]:
    """The document of cyclonedx-py about this environment, without what nothing that is shipped needs."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"),
               "--output-reproducible", "--of", "JSON", sys.executable]  # fmt: skip
    document: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [r for extra, asked in project["optional-dependencies"].items() if extra not in NOT_SHIPPED for r in asked]
    shipped = needed([*project["dependencies"], *extras])
    document["components"] = [c for c in document["components"] if canonicalize_name(c["name"]) in shipped]
    kept = {document["metadata"]["component"]["bom-ref"], *(c["bom-ref"] for c in document["components"])}
    document["dependencies"] = [
        {"ref": d["ref"], "dependsOn": [ref for ref in d.get("dependsOn", ()) if ref in kept]}
        for d in document["dependencies"]
        if d["ref"] in kept
    ]
    return document


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = bill_of_materials()
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(made['components'])} components")
