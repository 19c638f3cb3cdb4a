// How often people and system disagree, and the audit trail.

import { download, get } from "./api.js";
import { facts, field, h, number, replace, say, select } from "./dom.js";

export async function showAudit({ place, query, isShown }) {
  const products = await get("/v1/products");
  const product = query.get("product") ?? "";
  const since = query.get("since") ?? "";
  const [rates, head] = await Promise.all([get("/v1/rates", { product, since }), get("/v1/audit")]);
  if (!isShown()) return;
  const chooser = select([["", "all products"], ...products.map((p) => [p, p])], product);
  const from = h("input", { type: "date", value: since });
  const go = () => { location.hash = `#/audit?${new URLSearchParams(Object.entries({ product: chooser.value, since: from.value }).filter(([, v]) => v))}`; };
  for (const control of [chooser, from]) control.addEventListener("change", go);
  const checked = h("div", { role: "status" });
  const start = h("input", { type: "date" });
  replace(place, h("div", { class: "head" }, h("h1", {}, "Rates and audit")),
    h("section", { "aria-labelledby": "h-rates" }, h("h2", { id: "h-rates" }, "How often people and system disagree"),
      h("div", { class: "filters" }, field("Product", chooser), field("Inspected since", from)),
      h("p", { class: "muted" }, `From blind checks alone: ${number(rates.n_drawn)} of ${number(rates.n_inspections)} inspections were drawn, ${number(rates.n_waiting)} of them wait. `,
        h("a", { href: "#/blind" }, "Judge some")),
      ratesTable(rates),
      rates.notes.length > 0 && h("ul", { class: "notice" }, rates.notes.map((n) => h("li", {}, n))),
      h("p", { class: "muted" }, `Decisions by people who knew the verdict (no rate, since biased): ${rates.dispositions.accept} accepted, ${rates.dispositions.override} overridden.`)),
    h("section", { "aria-labelledby": "h-audit" }, h("h2", { id: "h-audit" }, "Audit trail"),
      h("p", {}, "Every request, photo, golden sample, version, tool call, report and decision, in a chain of hashes that shows tampering."),
      facts([["Records", number(head.records)], ["Head", h("code", {}, head.head)]]),
      h("div", { class: "filters" }, field("Since", start, "empty: all of it"),
        h("button", { type: "button", class: "primary", onclick: () => download("/v1/audit/export", { since: start.value }, `audit${start.value && `-since-${start.value}`}.jsonl`).catch((e) => say(e.message, "bad")) }, "Download"),
        h("button", { type: "button", onclick: check }, "Check the chain")),
      checked));

  async function check() {
    replace(checked, h("p", { class: "muted" }, "Checking …"));
    try {
      const found = await get("/v1/audit/check");
      replace(checked, found.problem ? h("p", { class: "notice bad" }, `Tampered with: ${found.problem}`)
        : h("p", { class: "notice good" }, `All ${number(found.records)} records are as they were written.`));
    } catch (error) {
      replace(checked, h("p", { class: "notice bad" }, error.message));
    }
  }
}

function cell(rate) {
  if (rate.value === null) return h("td", { class: "num" }, "–");
  const counts = rate.events === null ? `n ${rate.n}` : `${rate.events} of ${rate.n}`;
  return h("td", { class: rate.enough ? "num" : "num few" }, number(rate.value, 3), h("small", {}, `${counts}; ${rate.interval ? rate.interval.map((v) => v.toFixed(2)).join(" to ") : "too few for an interval"}`));
}

function ratesTable(rates) {
  const rows = [...rates.months, { ...rates.overall, period: "all" }];
  return h("div", { class: "tablebox" }, h("table", {}, h("caption", {}, "With the 95 % interval; grey where there are too few parts."),
    h("thead", {}, h("tr", {}, ["Month", "Good", "Defective", "False rejects", "Escapes", "Reviews", "Kappa"].map((t, i) => h("th", { scope: "col", class: i ? "num" : null }, t)))),
    h("tbody", {}, rows.map((r) => h("tr", {}, h("th", { scope: "row" }, r.period), h("td", { class: "num" }, r.n_good), h("td", { class: "num" }, r.n_bad),
      cell(r.false_reject), cell(r.escape), cell(r.review), cell(r.kappa))))));
}
