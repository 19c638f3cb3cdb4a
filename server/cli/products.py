"""`refdiff calibrate`, `product` and `evaluate`: how good parts score, what is acceptable, how well defects are found."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from refdiff.model.errors import InputError
from refdiff.model.files import storage_error
from refdiff.model.wording import few
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_stores, open_workspace, settings
from refdiff.server.cli.options import (
    AlphaRate,
    Json,
    ProductName,
    References,
    clean,
    minute,
)
from refdiff.server.cli.output import emit

product = typer.Typer(help="Set or show the acceptance rules of a product.", no_args_is_help=True)


_REMOVED = "the shared network inspects it again; the next inspection calibrates"
_NOT_FITTED = "no network was fitted to it; nothing to remove"

Layout = Literal["mvtec", "pairs", "deeppcb"]  # layouts.py, which knows them too, loads in seconds


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff calibrate --product bracket --alpha 0.05")(calibrate)
    app.command(epilog="Examples: refdiff fit --product bracket · refdiff fit --product bracket --remove")(fit)
    app.add_typer(product, name="product")
    app.command(epilog="Example: refdiff evaluate data/screw --goldens 40 --out results.json")(evaluate)


def calibrate(
    product: ProductName,
    alpha: AlphaRate = None,
    references: References = None,
    detectable: Annotated[
        bool, typer.Option("--detectable", help="Also say how small a defect is found; takes minutes.")
    ] = False,
    _json: Json = False,
) -> None:
    """Score the golden samples against each other, and show which false-reject rate they allow.

    Later inspections of the product use the same --alpha, unless they are given another one.

    --detectable draws spots and strokes of rising size on the golden samples (of 20 parts or more), and says from which size
    on 95 % of them would fail the part by this calibration. The answer is kept with the calibration, and shown again by
    `product show`.
    """
    from refdiff.tools.golden_samples.fit import is_due
    from refdiff.tools.inspection.calibration import calibrate as measure
    from refdiff.tools.inspection.calibration import in_doubt, requested_alpha, said_of, standing_out
    from refdiff.tools.inspection.detectable import check_enough_parts, find_marks
    from refdiff.tools.inspection.fineness import product_fineness
    from refdiff.tools.inspection.overview import calibration_overview

    with open_workspace(references=references, alpha=alpha) as workspace:
        name = workspace.stores.products.name_of(product)
        if not workspace.bank.count(name):
            raise workspace.bank.no_goldens(name)
        if detectable:
            check_enough_parts(workspace, name)
        untold = ""
        with output.progress(name) as moved:
            calibration = measure(workspace, name, references, moved, alpha, settings().server.user)
            if detectable:
                try:
                    calibration = find_marks(workspace, calibration, moved)
                except InputError as e:  # the calibration holds all the same
                    untold = str(e)
        asked = requested_alpha(workspace, calibration)
        doubted = in_doubt(workspace, calibration)
        found = calibration_overview(workspace, calibration)
        found["smallest_defect"] = product_fineness(workspace, name)
        if untold:
            found["detectable_problem"] = untold
        due = is_due(workspace, name)
        flagged = {g.golden_id for g in workspace.bank.list(name, ("flagged",))}
    emit(found, output.facts(_calibration_rows(found)))
    if untold:
        output.note(untold)
    if due:
        output.note(output.fit_hint(name))
    odd = standing_out(calibration)
    decided = {one.golden_id for one in odd} - flagged
    if len(odd) > len(decided):
        output.note(
            f"{said_of(calibration, odd, asked, doubted, decided)}. They stay in use; look at each, then run "
            "`refdiff goldens retire GOLDEN` or `refdiff goldens activate GOLDEN`"
        )


def fit(
    product: ProductName,
    remove: Annotated[
        bool, typer.Option("--remove", help="Forget what was fitted: the shared network inspects the product again.")
    ] = False,
    _json: Json = False,
) -> None:
    """Train the difference network further on the golden samples of a product, to let fewer defects pass.

    It learns what varies in good parts, and what defects look like on them: synthetic ones, and those that people confirmed.
    Flagged golden samples do not teach. Needs golden samples of 20 parts, half of them active, some minutes and about 2.5 GB
    of memory; interrupted, it resumes with the half that was not finished.

    The network is kept, and calibrated, only if it finds more synthetic defects than the shared network, and no fewer than
    the one in use, on golden samples that it did not see. It goes out of use once a golden sample that taught it is retired,
    a part whose defect taught it is found good, or the shared network is replaced; then the shared network inspects.

    `refdiff serve` fits by itself (REFDIFF_AUTO_FIT). While a server holds the home folder, ask it instead: the page, or
    POST /v1/products/P/network.
    """
    from refdiff.tools.golden_samples.fit import fit_product

    user = settings().server.user
    with open_workspace() as workspace:
        name = workspace.stores.products.name_of(product)
        if remove:
            gone = workspace.stores.networks.remove(name, user)
            emit({"product": name, "removed": gone}, f"{name}: {_REMOVED if gone else _NOT_FITTED}")
            return
        if not workspace.bank.count(name):
            raise workspace.bank.no_goldens(name)
        again = f"refdiff fit --product {shlex.quote(name)}"
        current().goes_on = f"to go on with the half that was not finished, run it again: {again}"
        with output.progress(name) as moved:
            made = fit_product(workspace, name, user, progress=moved)
    shared, fitted, of = made.networks.found
    replaced = made.by_replaced
    found = {
        "product": name, "kept": made.kept, "sha256": made.networks.sha256, "seconds": made.networks.seconds,
        "golden_samples": sum(map(len, made.networks.trained_on)), "confirmed_defects": len(made.networks.confirmed),
        "left_out": made.left_out,
    }  # fmt: skip
    better = "the shared network finds as many, or more" if fitted <= shared else "the network in use finds more"
    outcome = "kept, and calibrated" if made.kept else f"not kept: {better}"
    rows: list[tuple[str, object]] = [
        ("Product", name),
        ("Learned from", made.networks.learned_from),
        ("Synthetic defects", f"{of} on golden samples that the network did not see"),
        ("Shared network", f"finds {shared}"),
        ("Network in use before", None if replaced is None else f"finds {replaced}"),
        ("Fitted network", f"finds {fitted}"),
        ("Outcome", outcome),
        ("Took", f"{made.networks.seconds:.0f} s"),
    ]
    defects = {"n": of, "shared": shared, "fitted": fitted, "replaced": replaced}
    emit(found | {"synthetic_defects": defects}, output.facts(rows))
    for why, ids in made.left_out.items():
        output.say(f"not learned from: {len(ids)} confirmed defect(s), inspection {few(ids)}: {why}", "dim")


def _calibration_rows(found: dict[str, Any]) -> list[tuple[str, object]]:
    asked, attained = found["alpha"]["requested"], found["alpha"]["attained"]
    low, high = found["score_range"]
    promise = f"at most {attained:.4g} of good parts fail, on average over banks"
    if attained > asked:
        promise = (
            f"{asked:g} requested, which needs {found['goldens_needed_for_alpha']} parts; "
            f"with {found['n']}{', one of them in doubt,' if found.get('in_doubt') else ''} "
            f"the smallest possible rate is {attained:.4g}"
        )
    verdicts = "PASS, FAIL and REVIEW" if found["can_fail"] else "PASS and REVIEW only: FAIL needs 20 good parts"
    return [
        ("Product", found["product"]),
        ("Good parts", found["n"]),
        ("Compared with", f"{found['references']} nearest goldens each"),
        ("False rejects", promise),
        ("Scores", f"{low:.4f} to {high:.4f}"),
        *_stand_out_rows(found),
        ("Not registered", _unregistered_text(found.get("unregistered"))),
        ("Pixel limit", f"{found['pixel_threshold']:.4f}"),
        ("Fineness", found["smallest_defect"]["summary"] if found.get("smallest_defect") else None),
        *_detectable_rows(found.get("detectable")),
        ("Counted", _counted_said(found)),
        ("Not counted", _unrecognised_said(found)),
        ("Verdicts", verdicts),
        ("Measured", f"{minute(found['created_at'])}, {found['seconds']:.1f} s"),
    ]


def _counted_said(found: dict[str, Any]) -> str | None:
    """`clip: 5; component 2: 3`."""
    counts = found.get("components", [])
    names = found.get("component_names") or [None] * len(counts)
    called = zip(names, counts, strict=True)
    return output.printable("; ".join(f"{c or f'component {i}'}: {n}" for i, (c, n) in enumerate(called, 1))) or None


def _unrecognised_said(found: dict[str, Any]) -> str | None:
    names = output.printable(", ".join(found.get("unrecognised_names", [])))
    return (
        f"{names}: nothing that is counted looks like it any more; name it again, or --remove the name"
        if names
        else None
    )


def _detectable_rows(found: dict[str, Any] | None) -> list[tuple[str, object]]:
    if found is None:
        return []
    how = (
        f"{found['share']:.0%} of what is drawn in each size (contrast {found['contrast']:g}, {found['marks']} places); "
        "smaller and fainter ones are missed more often"
    )
    return [("Found", how), *(("", line) for line in found["summary"])]


def _unregistered_text(ids: list[str] | None) -> str | None:
    if not ids:
        return None
    from refdiff.tools.inspection.calibration import listed_ids

    return (
        f"{listed_ids(ids)}, to no other golden sample: mirrored, or another part? While in use, photos that do not "
        "register are REVIEW instead of FAIL"
    )


def _stand_out_rows(found: dict[str, Any]) -> list[tuple[str, object]]:
    if not found.get("stand_out"):
        return []
    names = ", ".join(f"{one['golden_id']} ({one['score']:.4f})" for one in found["stand_out"])
    limit = f"{found['limit']:.4f}"
    if found["limit_if_good"] != found["limit"]:
        doubted, if_good = found["stand_out"][0]["golden_id"], found["limit_if_good"]
        limit += f" while {doubted} is in doubt; {if_good:.4f} once it is activated"
    limit += f"; without what stands out {found['limit_without']:.4f}"
    return [("Stand out", names), ("Limit", limit)]


@product.command("set", epilog="Example: refdiff product set bracket --spec bracket.yaml")
def set_product(
    name: Annotated[str, typer.Argument(metavar="P", help="Product: the kind of part.")],
    spec: Annotated[
        Path | None,
        typer.Option("--spec", metavar="FILE.yaml", help="Scale, zones and limits; replaces what was set before."),
    ] = None,
    smallest_defect_mm: Annotated[
        float | None, typer.Option(metavar="MM", help="Size of the smallest defect that matters; needs a scale.")
    ] = None,
    smallest_defect_px: Annotated[
        float | None, typer.Option(metavar="PX", help="The same in pixels of the golden samples.")
    ] = None,
    _json: Json = False,
) -> None:
    """Set the acceptance rules: scale, ignored and critical zones, limits by type and size, the smallest defect.

    Photos are compared as finely as the smallest defect needs, which takes longer the smaller it is.
    """
    from refdiff.model.errors import SpecError
    from refdiff.tools.inspection.calibration import of_specification
    from refdiff.tools.inspection.fineness import check_specification, product_scale, too_fine
    from refdiff.tools.inspection.methods import method_of
    from refdiff.tools.inspection.specification import ProductSpec, load_spec, parse_spec

    smallest = {"smallest_defect_mm": smallest_defect_mm, "smallest_defect_px": smallest_defect_px}
    asked = {k: v for k, v in smallest.items() if v is not None}
    if spec is None and not asked:
        raise typer.BadParameter("give a FILE.yaml, --smallest-defect-mm or --smallest-defect-px.", param_hint="--spec")
    with open_stores() as stores:
        name, known = stores.products.name_of(name), stores.products.get(name)
        try:
            before = parse_spec(known.spec if known else {}, f"specification of {name}")
        except SpecError:
            if spec is None:
                raise
            before = ProductSpec()  # what cannot be read any more is replaced
        rules = load_spec(spec) if spec else before
        if asked:
            rules = parse_spec(rules.model_dump(mode="json") | dict.fromkeys(smallest) | asked, "smallest defect")
        changed, wanted = of_specification(before) != of_specification(rules), rules.smallest_defect_px
        mm_per_px: float | None = None
        if rules.smallest_defect_mm is not None or rules.of_kinds or (known and known.kind != "photo"):
            with open_workspace() as workspace:
                check_specification(workspace, name, rules)
                if rules.smallest_defect_mm is not None and (mm_per_px := product_scale(workspace, name, rules)):
                    wanted = rules.smallest_defect_mm / mm_per_px
                if known and known.kind != "photo":
                    method = method_of(workspace, name)
                    changed |= method.rules(before) != method.rules(rules)
        unseen = "" if wanted is None else too_fine(stores, settings().model.working_px, name, wanted, mm_per_px)
        stale = changed and stores.calibrations.latest(name) is not None
        scale = rules.scale_mm_per_px if spec or known is None else known.scale_mm_per_px
        # a file replaces what is there; else all but the smallest defect must be what it was
        made_from = None if spec else known.spec_version if known else 0
        kept = stores.products.set_spec(name, rules.model_dump(mode="json"), scale, settings().server.user, made_from)
        others = [p.name for p in stores.products.list() if p.name != kept.name]
    line = f"{kept.name}: specification {kept.spec_version} set, {len(rules.zones)} zones, {len(rules.limits)} limits"
    emit(kept.document, line)
    if known is None and others:  # perhaps misspelt
        output.note(f"{kept.name} is a new product; known: {', '.join(others)}")
    if unseen:
        output.note(unseen)
    if stale:
        output.note("this changes the scores; the next inspection calibrates again")


@product.command("name", epilog="Examples: refdiff product name tray 1 clip · refdiff product name tray clip --remove")
def name_component(
    name: Annotated[str, typer.Argument(metavar="P", help="Product: the kind of part.")],
    component: Annotated[
        str, typer.Argument(metavar="COMPONENT", help="Number of what is counted (see product show), or its name.")
    ],
    called: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="What you call it: 1 to 48 letters, digits, blanks and .,/()+&'#%_-"),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the name away.")] = False,
    _json: Json = False,
) -> None:
    """Name what is counted: reports then say "clip: 5 of 6" instead of "component 1: 5 of 6".

    The name belongs to what the component looks like, so it outlives a calibration that finds the component again, under
    whatever number. Names decide nothing; filed reports keep what they said.
    """
    from refdiff.memory.records.defect_names import plain_name
    from refdiff.tools.inspection.component_names import name_component as give

    if (called is None) != remove:
        raise typer.BadParameter("give a NAME, or --remove.", param_hint="NAME")
    with open_stores() as stores:
        kept = give(
            stores, clean(name), clean(component), None if called is None else clean(called), settings().server.user
        )
    said = (
        f"component {plain_name(component)} is called {plain_name(called)}"
        if called is not None
        else f"component {plain_name(component)} has no name any more"
    )
    emit(kept.document, output.printable(f"{kept.name}: {said}"))


@product.command("show", epilog="Example: refdiff product show bracket")
def show_product(
    name: Annotated[str | None, typer.Argument(metavar="P", help="Product; without it, all are listed.")] = None,
    _json: Json = False,
) -> None:
    """Show a product's specification, golden samples and calibration."""
    if name is None:
        with open_stores() as stores:
            known = stores.products.list()
        listed = "\n".join(p.name for p in known) or "no products; create one: refdiff enroll --product P FOLDER"
        emit({"products": [p.document for p in known]}, listed)
        return

    from refdiff.tools.inspection.overview import product_overview

    with open_workspace() as workspace:
        document = product_overview(workspace, name)
        notes = workspace.bank.notes(document["name"])
    emit(document, *_product_view(document))
    for text in notes:
        output.note(text)


@product.command("remove", epilog="Example: refdiff product remove Alien")
def remove_product(
    name: Annotated[str, typer.Argument(metavar="P", help="Product: the kind of part.")], _json: Json = False
) -> None:
    """Forget a product that has neither golden samples nor captured photos. Filed reports stay."""
    with open_workspace() as workspace:
        name = workspace.stores.products.name_of(name)
        if n := workspace.bank.count(name):
            raise InputError(f"product {name!r} has {n} golden samples, which reports refer to; retire them instead")
        gone = workspace.stores.products.remove(name, settings().server.user)
    emit({"removed": gone.document}, f"{gone.name}: removed")


def _network_said(network: dict[str, Any] | None) -> str | None:
    if network is None:
        return None
    found = network["synthetic_defects"]
    if network["outdated"]:
        return f"not in use: {network['outdated']}; run refdiff fit again"
    return (
        f"learned from {network['learned_from']}, {minute(network['created_at'])}; found {found['fitted']} of "
        f"{found['n']} synthetic defects, the shared one {found['shared']}"
    )


def _product_view(document: dict[str, Any]) -> list[Any]:
    import yaml

    scale, window = document["scale_mm_per_px"], document["intensity_window"]
    goldens = ", ".join(f"{n} {status}" for status, n in document["goldens"].items())
    own, name = document["goldens_with_scale"], shlex.quote(document["name"])
    unknown = f"that of each golden sample ({own} have one)" if own else "unknown"
    rows: list[tuple[str, object]] = [
        ("Product", document["name"]),
        ("Goldens", goldens),
        ("Network", _network_said(document["network"])),
        ("Scale", f"{scale:g} mm/px" if scale else unknown),
        ("Intensity window", f"{window[0]:.6g} to {window[1]:.6g}" if window else None),
        ("Fineness", document["smallest_defect"]["summary"] if document["smallest_defect"] else None),
    ]
    spec = {k: v for k, v in document["spec"].items() if v not in (None, [])}  # 0 is a value
    parts: list[Any] = [output.facts(rows)]
    if spec:
        parts.append(f"\nSpecification {document['spec_version']}\n{yaml.safe_dump(spec, sort_keys=False).rstrip()}")
    else:
        parts.append(
            f"\nNo specification: the score alone decides. Set one: refdiff product set {name} --spec FILE.yaml"
        )
    if document["calibration"] is None:
        parts.append(f"\nNot calibrated yet; the first inspection does it, or refdiff calibrate --product {name}")
    else:
        stale = " (stale: the next inspection measures it again)" if document["calibration"]["stale"] else ""
        parts += [f"\nCalibration{stale}", output.facts(_calibration_rows(document["calibration"])[1:])]
    return [output.printable(p) if isinstance(p, str) else p for p in parts]


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.")],
    format: Annotated[Layout | None, typer.Option(help="Layout of the data set; default: detected.")] = None,
    split: Annotated[
        Literal["trainval", "test"] | None, typer.Option(help="Split to use, for the layout deeppcb.")
    ] = None,
    goldens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of golden samples to enrol; default: all.")
    ] = None,
    references: References = None,
    alpha: AlphaRate = None,
    judge: Annotated[bool, typer.Option("--judge", help="Have the language model read each pair too.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this file (JSON).")] = None,
    detections: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write one text file of boxes per test image.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap intervals.")] = 0,
    learned: Annotated[
        str | None,
        typer.Option("--learned", metavar="P", help="Measure with and without the adopted references of product P."),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the network to the golden samples first.")] = False,
    _json: Json = False,
) -> None:
    """Measure how well defects are found on a labelled data set. Needs no set-up, changes no stored data."""
    chosen = settings(alpha=alpha).tools  # a wrong setting is reported before anything loads
    if out is not None:
        _check_file(out)
    from refdiff.agent.evaluation.results import print_results
    from refdiff.agent.evaluation.run import evaluate as measure

    with output.progress(clean(directory.name or str(directory))) as moved:
        results = measure(
            directory,
            format=format,
            split=split,
            goldens=goldens,
            references=references,
            alpha=chosen.alpha,
            judge=judge,
            detections=detections,
            seed=seed,
            learned=learned,
            fit=fit,
            progress=moved,
        )
    print_results(results, output.err)
    if out is not None:
        try:
            out.write_text(results.model_dump_json(indent=2), encoding="utf-8")
        except OSError as e:
            raise storage_error(out, e) from e
        output.say(f"results written to {clean(str(out.absolute()))}")
    if current().as_json:
        emit(results.model_dump(mode="json"))


def _check_file(path: Path) -> None:
    """Check the path before hours of evaluation. Raises InputError."""
    name = clean(str(path))
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--out {name}: its folder cannot be created ({e.strerror})") from e
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise InputError(f"--out {name}: cannot be written; choose a file in a writable folder")
