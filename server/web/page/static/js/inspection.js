// One inspection: pictures, findings with their measurements, reasoning, trace, and a person's decision.

import { ApiError, download, get, picture, post, remove } from "./api.js";
import { cloudView } from "./cloud.js";
import { facts, h, number, percent, replace, say, verdict, when, words } from "./dom.js";
import { onThisPage } from "./keys.js";
import { DECIDED, last } from "./list.js";
import { knownNames, likeness, naming } from "./naming.js";
import { Viewer, findingTitle } from "./viewer.js";

const STATED = { file: "from the file", product: "stated by the specification", capture: "stated with the file" };
const UNITS = { thermal: "°C", depth: "mm", cloud: "mm" }; // of what is measured in each pixel

export async function showInspection({ place, rest: [id], me, isShown, onLeave }) {
  const found = await get(`/v1/inspections/${encodeURIComponent(id)}`);
  if (!isShown()) return;
  if (!found.report) {
    const again = () => { if (isShown()) showInspection({ place, rest: [id], me, isShown, onLeave }); };
    showUnfinished(place, found, me, again);
    const timer = setTimeout(again, 2000);
    onLeave(() => clearTimeout(timer));
    return;
  }
  const report = found.report;
  const viewer = new Viewer(sources(found), size(report), report.findings);
  onLeave(() => viewer.close());
  const known = knownNames(report.product, "defect-names");
  const findings = h("ol", { class: "findings" }, report.findings.map((f, i) => findingItem(f, i, viewer, naming(report, f, i, found.names[f.id], me, known))));
  const decision = h("section", { class: "decision", "aria-labelledby": "h-decision" });
  const draw = (disposition) => drawDecision(decision, report, disposition, me, draw);
  draw(found.disposition && { ...found.disposition, learned: found.learned });
  viewer.element.addEventListener("finding", ({ detail }) => {
    [...findings.children].forEach((item, i) => item.classList.toggle("current", i === detail));
    findings.children[detail].scrollIntoView({ block: "nearest" });
  });
  const ids = last.ids;
  const at = ids.indexOf(id);
  const neighbour = (by) => { const to = ids[at + by]; if (at >= 0 && to) location.hash = `#/inspections/${encodeURIComponent(to)}`; };
  const back = `#/inspections${last.query ? `?${last.query}` : ""}`;

  replace(place,
    h("div", { class: "head" },
      h("a", { href: back, class: "back" }, "← All"),
      h("h1", {}, "Part ", report.part_id), verdict(report.verdict),
      h("p", { class: "reason" }, report.verdict_reason),
      at >= 0 && h("div", { class: "segments neighbours" },
        h("button", { type: "button", disabled: at <= 0, onclick: () => neighbour(-1), title: "Newer (k)" }, "↑ Newer"),
        h("button", { type: "button", disabled: at >= ids.length - 1, onclick: () => neighbour(1), title: "Older (j)" }, "↓ Older"))),
    h("div", { class: "two" },
      h("div", {}, viewer.element, inColour(report) && colourPictures(report), report.kind === "cloud" && cloudView(`/v1/inspections/${encodeURIComponent(id)}/points`, reachOf(report))),
      h("div", { class: "side" }, decision,
        h("section", { "aria-labelledby": "h-findings" }, h("h2", { id: "h-findings" }, `Findings (${report.findings.length})`),
          report.findings.length ? [findings, known.list] : h("p", { class: "muted" }, "Nothing differs more than good samples do from each other.")),
        judgement(report))),
    h("section", { "aria-labelledby": "h-reasoning" }, h("h2", { id: "h-reasoning" }, "Reasoning"), h("p", {}, report.reasoning),
      report.unsupported_claims_dropped.length > 0 && h("details", {}, h("summary", {}, `Claims dropped for lack of evidence (${report.unsupported_claims_dropped.length})`),
        h("ul", {}, report.unsupported_claims_dropped.map((c) => h("li", {}, c))))),
    questions(report), trace(report), evidence(report), record(found));

  onThisPage([
    ...viewer.shortcuts(),
    ["a", "accept the verdict", () => pick(decision, "accept")],
    ["o", "override it", () => pick(decision, "override")],
    ["j k", "older, newer inspection of the list", (k) => neighbour(k === "j" ? 1 : -1)],
    ["u", "back to the list", () => { location.hash = back; }],
  ]);
}

/** Whether height and colour were compared: they have no unit in common. */
const inColour = (report) => report.kind === "depth" && !report.unit;

/** Heights above, colours below: part and reference, and what differs. */
function colourPictures(report) {
  const shown = [["side_by_side", "Reference and part, heights and colours"], ["heatmap", "What differs in height and in colour"]].map(([name, alt]) => {
    const img = h("img", { alt });
    picture(report.artefacts[name]).then((url) => { img.src = url; img.dataset.loaded = "true"; }, (error) => img.replaceWith(h("p", { class: "missing" }, `${alt}: ${error.message}`)));
    return img;
  });
  return h("div", { class: "colours" }, shown);
}

/** mm at which a deviation has the full colour: that of the largest finding, else of the score. */
function reachOf(report) {
  const found = report.findings.flatMap((f) => f.quantities ?? []).filter((q) => q.name === "deviation_mm");
  return Math.max(1e-3, ...found.map((q) => Math.abs(q.value)), report.image_score);
}

function sources(found) {
  const a = found.report.artefacts;
  const measured = (found.report.kind ?? "photo") !== "photo";
  return {
    query: a.query ?? found.links.query, reference: a.reference ?? found.links.reference, anomaly: a.anomaly,
    values: measured ? `/v1/inspections/${encodeURIComponent(found.inspection_id)}/values` : null, unit: UNITS[found.report.kind],
  };
}

/** Size of the photo in px, in which all boxes are. */
function size(report) {
  const numbers = report.evidence.find((e) => e.kind === "capture")?.numbers ?? {};
  const reach = (corner) => Math.max(1, ...report.findings.map((f) => f.location[corner]));
  return { width: numbers.width_px ?? reach("x1"), height: numbers.height_px ?? reach("y1") };
}

function showUnfinished(place, found, me, again) {
  const state = `${found.state} ${found.ahead}`;
  if (place.querySelector(`[data-state="${state}"]`)) return; // nothing new: whoever is about to press the button keeps it
  const cancelled = found.error?.type === "Cancelled";
  const words_ = {
    queued: `waits, ${found.ahead} before it`, running: "is being inspected",
    failed: cancelled ? `was not inspected: ${found.error.message}` : "could not be inspected",
  };
  const problem = h("p", { class: "notice bad", role: "alert", hidden: true });
  const act = (label, work) => me.role !== "viewer" && h("button", { type: "button", onclick: async (event) => {
    event.target.disabled = true;
    try {
      await work();
      say(`${label}: done`);
    } catch (error) { // it may run by now
      problem.textContent = error.message;
      problem.hidden = false;
    }
    again();
  } }, label);
  const path = `/v1/inspections/${encodeURIComponent(found.inspection_id)}`;
  replace(place, h("h1", {}, "Part ", found.part_id),
    h("p", { class: found.state === "failed" ? "notice bad" : "notice", role: "status", "data-state": state }, `This part ${words_[found.state] ?? found.state}. `, !cancelled && found.error?.message),
    problem,
    h("p", {},
      found.state === "queued" && act("Cancel this inspection", () => remove(path)),
      found.state === "failed" && act("Try again", () => post(`${path}/retry`))),
    h("p", {}, h("a", { href: "#/inspections" }, "All inspections")));
}

function sizes(finding) {
  const unit = finding.length_mm !== null ? "mm" : "px";
  const sides = [finding[`length_${unit}`], finding[`width_${unit}`]].filter((v) => v !== null && v !== undefined);
  const text = sides.map((v) => (unit === "mm" ? v.toFixed(2) : number(v, 3))).join(" × ");
  const tolerance = unit === "mm" && finding.uncertainty_mm !== null ? ` (± ${finding.uncertainty_mm.toFixed(2)})` : "";
  return text ? `${text} ${unit}${tolerance}` : `${number(finding.area_px)} px²`;
}

/** `+12.3 ± 0.8 K`, `-0.342 ± 0.021 mm`: a measured quantity as reports write it (`Quantity.said`). */
function quantityText({ name, value, unit, uncertainty }) {
  const thermal = unit === "K" || unit === "°C", of = Math.abs(uncertainty || value);
  const decimals = thermal || of === 0 ? 1 : Math.min(4, Math.max(0, (uncertainty ? 2 : 3) - 1 - Math.floor(Math.log10(of))));
  const sign = value > 0 && (unit === "K" || name.includes("deviation")) ? "+" : "";
  return `${sign}${value.toFixed(decimals)}${uncertainty === null ? "" : ` ± ${uncertainty.toFixed(decimals)}`} ${unit}`;
}

function findingItem(finding, index, viewer, named) {
  const seen = finding.seen_before;
  return h("li", {},
    h("button", { type: "button", class: "zoom", title: "Zoom to it", onclick: () => viewer.focus(index) }, findingTitle(finding, index)),
    h("p", {}, finding.description),
    facts([
      ["Called", finding.named && [h("strong", {}, finding.named.name), ", ", likeness(finding.named), ` (type: ${words(finding.type)})`]],
      ["Found in", finding.found_in?.join(" and ")],
      ...(finding.quantities ?? []).map((q) => [q.label, quantityText(q)]),
      ["Size", sizes(finding)],
      ["Severity", finding.severity + (finding.within_limits ? ", within limits" : "")],
      ["Confidence", percent(finding.confidence)],
      ["Zone", finding.zone],
      ["Cause", finding.probable_cause && `${finding.probable_cause.text} (${finding.probable_cause.basis})`],
      ["Seen before", seen && `on ${seen.parts} other part${seen.parts === 1 ? "" : "s"} in the last ${seen.days} days${seen.place ? ", same place" : ""}`],
      ["Evidence", finding.evidence.join(", ")],
    ]),
    named,
    h("details", {}, h("summary", {}, "Reasoning"), h("p", {}, finding.reasoning)));
}

function judgement(report) {
  const judge = report.judge.via === "fallback" ? `no language model${report.judge.reason ? `: ${report.judge.reason}` : ""}` : `${report.judge.model} (${report.judge.via})`;
  const reading = report.llm_reading;
  return h("section", { "aria-labelledby": "h-judgement" }, h("h2", { id: "h-judgement" }, "Judgement"), facts([
    ["Score", `${number(report.image_score)}${report.unit ? ` ${report.unit}` : ""}${report.threshold === null ? "" : `, limit ${number(report.threshold)}`}`],
    ["p-value", report.p_value === null ? "not calibrated" : `${number(report.p_value, 3)}, fails at ${number(report.alpha.attained, 3)} (${report.n_calibration} good parts)`],
    ["Nearest good", [h("a", { href: `#/goldens/${encodeURIComponent(report.product)}?id=${encodeURIComponent(report.reference.golden_id)}` }, report.reference.golden_id), `, similarity ${number(report.reference.similarity, 3)}`]],
    ["Registered", report.alignment.ok ? `${report.alignment.method}, overlap ${percent(report.alignment.overlap)}` : `no (${report.alignment.method})`],
    ["Scale", report.scale.mm_per_px === null ? "unknown, so no millimetres" : `${number(report.scale.mm_per_px)} mm/px (${report.scale.source})`],
    ["Model's reading", reading && `${reading.defect ? "defect" : "no defect"}, ${words(reading.type)}, ${percent(reading.confidence)}${reading.counts === false ? ", too unsure to count" : ""}`],
    ["Judge", judge],
    ...(report.conditions ?? []).map((c) => [c.label, `${number(c.value)} ${c.unit} (${STATED[c.source]})`]),
    ...(report.notes ?? []).map((note) => ["Note", note]),
  ]));
}

function questions(report) {
  const asked = h("input", { type: "text", maxlength: 2000, required: true, autocomplete: "off", "aria-label": "Question about this report", placeholder: "How long is finding 1? Was it seen before?" });
  const answers = h("dl", { class: "facts", "aria-live": "polite" });
  const send = h("button", { type: "submit" }, "Ask");
  async function submit(event) {
    event.preventDefault();
    send.disabled = true;
    try {
      const { answer } = await post(`/v1/inspections/${encodeURIComponent(report.inspection_id)}/questions`, { question: asked.value });
      answers.prepend(h("div", {}, h("dt", {}, asked.value), h("dd", {}, answer)));
      asked.value = "";
    } catch (error) {
      say(error.message, "bad");
    }
    send.disabled = false;
  }
  return h("section", { "aria-labelledby": "h-ask" }, h("h2", { id: "h-ask" }, "Ask about this report"), h("form", { class: "ask", onsubmit: submit }, asked, send), answers);
}

function trace(report) {
  return h("section", { "aria-labelledby": "h-trace" }, h("details", {}, h("summary", {}, h("h2", { id: "h-trace" }, `Tool trace (${report.tool_trace.length})`)),
    h("div", { class: "tablebox" }, h("table", {}, h("thead", {}, h("tr", {}, ["Step", "Tool", "Arguments", "Result", "Evidence"].map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, report.tool_trace.map((t) => h("tr", {}, h("td", { class: "num" }, t.step), h("td", {}, h("code", {}, t.tool)),
        h("td", {}, Object.entries(t.arguments).map(([k, v]) => `${k}=${Array.isArray(v) ? v.join(",") : v}`).join(", ")),
        h("td", {}, t.ok ? t.message : h("span", { class: "bad" }, `error: ${t.message}`)), h("td", {}, t.evidence ?? ""))))))));
}

function evidence(report) {
  return h("section", { "aria-labelledby": "h-evidence" }, h("details", {}, h("summary", {}, h("h2", { id: "h-evidence" }, `Measurements and evidence (${report.evidence.length})`)),
    h("div", { class: "tablebox" }, h("table", {}, h("thead", {}, h("tr", {}, ["Id", "Kind", "What", "Numbers"].map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, report.evidence.map((e) => h("tr", {}, h("td", {}, e.id), h("td", {}, e.kind), h("td", {}, e.summary),
        h("td", { class: "numbers" }, Object.entries(e.numbers).map(([k, v]) => `${words(k)} ${number(v)}`).join(" · ")))))))));
}

function record(found) {
  const report = found.report;
  return h("section", { "aria-labelledby": "h-record" }, h("details", {}, h("summary", {}, h("h2", { id: "h-record" }, "Record")),
    facts([
      ["Inspection", h("code", {}, report.inspection_id)], ["Asked by", report.requested_by], ["Request", report.request],
      ["Filed", when(report.created_at)], ["Product", report.product], ["Photo", h("code", {}, report.query_sha256)],
      ["Software", `refdiff ${report.software.version}`], ["Weights", h("code", {}, report.software.weights_sha256)],
      ["Times", Object.entries(report.timings_ms).map(([k, v]) => `${k} ${number(v, 3)} ms`).join(", ")],
    ])),
    h("p", { class: "actions" },
      h("button", { type: "button", onclick: () => download("/v1/audit/export", { inspection_id: report.inspection_id }, `audit-${report.inspection_id}.jsonl`).catch((e) => say(e.message, "bad")) }, "Download audit trail"),
      h("button", { type: "button", onclick: () => download(report.artefacts.html, {}, `${report.inspection_id}.html`).catch((e) => say(e.message, "bad")) }, "Download report page")));
}

// -- the decision

function pick(place, decision) {
  const radio = place.querySelector(`input[value="${decision}"]`);
  if (!radio) return;
  radio.click();
  place.querySelector("textarea").focus();
}

function drawDecision(place, report, disposition, me, draw) {
  const title = h("h2", { id: "h-decision" }, "Decision");
  if (disposition) {
    const learned = disposition.learned;
    replace(place, title, h("p", { class: "decided" }, h("strong", {}, DECIDED[disposition.decision]), ` by ${disposition.by}, `, when(disposition.created_at)),
      h("blockquote", {}, disposition.reason),
      disposition.judged && h("p", {}, `The part is ${disposition.judged === "good" ? "good" : "defective"}.`),
      disposition.as_reference && h("p", { class: "muted" }, `Photo as golden sample: ${learned ? learned.outcome : "proposed"}${learned?.golden_id ? ` (${learned.golden_id})` : ""}.`),
      disposition.as_reference && !learned && h("p", {}, h("a", { href: "#/goldens" }, "Proposed samples"), " wait for an admin or a second person."));
    return;
  }
  if (!me.may("inspector")) {
    replace(place, title, h("p", { class: "muted" }, report.verdict === "REVIEW" ? "Waits for a person. " : "Nobody has decided about it. ", "You may only look."));
    return;
  }
  const review = report.verdict === "REVIEW";
  const radio = (name, value, text, hint) => h("label", { class: "choice" }, h("input", { type: "radio", name, value, required: true }), h("span", {}, h("strong", {}, text), h("small", {}, hint)));
  const reason = h("textarea", { rows: 2, maxlength: 2000, required: true, "aria-label": "Reason", placeholder: "Why? It is kept with the report." });
  const consent = h("input", { type: "checkbox" });
  const consentLine = h("label", { class: "check", hidden: true }, consent, me.may("admin") ? " The photo may become a golden sample" : " Propose the photo as a golden sample; somebody else has to approve it");
  const send = h("button", { class: "primary", type: "submit" }, "Decide");
  const form = h("form", { onsubmit: submit, onchange: update }, 
    h("fieldset", {}, h("legend", { class: "sr" }, "The verdict"),
      radio("decision", "accept", "Accept", review ? "the doubt was right" : `it is a ${report.verdict}`),
      radio("decision", "override", "Override", review ? "no reason to doubt" : `it is no ${report.verdict}`)),
    review && h("fieldset", {}, h("legend", {}, "The part is"), radio("judged", "good", "Good", ""), radio("judged", "bad", "Defective", "")),
    reason, consentLine, h("div", { class: "actions" }, send));
  reason.addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) form.requestSubmit(); });

  function judged() {
    const data = new FormData(form);
    if (review) return data.get("judged");
    if (!data.get("decision")) return null;
    return (report.verdict === "PASS") === (data.get("decision") === "accept") ? "good" : "bad";
  }
  function update() {
    consentLine.hidden = judged() !== "good";
    if (consentLine.hidden) consent.checked = false;
  }
  async function submit(event) {
    event.preventDefault();
    if (send.disabled) return; // a held Ctrl Enter
    send.disabled = true;
    const body = { decision: new FormData(form).get("decision"), reason: reason.value.trim(), judged: judged(), as_reference: consent.checked };
    try {
      const made = await post(`/v1/inspections/${encodeURIComponent(report.inspection_id)}/disposition`, body);
      draw(made);
      say(`Part ${report.part_id}: ${DECIDED[made.decision]}.`);
    } catch (error) {
      send.disabled = false;
      if (error instanceof ApiError && error.status === 409 && error.detail.earlier) draw(error.detail.earlier);
      say(error.message, "bad");
    }
  }
  replace(place, title, review && h("p", {}, "This one waits for a person."), form);
}
