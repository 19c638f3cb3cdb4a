// All filed inspections: filters, pages, and what waits or runs.

import { get } from "./api.js";
import { facts, field, h, number, replace, select, verdict, when } from "./dom.js";
import { onThisPage } from "./keys.js";

const PAGE = 50;

/** The last list that was shown; an inspection finds its neighbours in it. */
export const last = { query: "", ids: [] };

export async function showList({ place, query, isShown, onLeave }) {
  const page = Math.max(1, Number(query.get("page")) || 1);
  const wanted = Object.fromEntries(["product", "verdict", "part_id", "from", "to", "open"].map((k) => [k, query.get(k) ?? ""]));
  const products = await get("/v1/products");
  const found = await get("/v1/inspections", {
    product: wanted.product, verdict: wanted.verdict, part_id: wanted.part_id,
    since: wanted.from && dayStart(wanted.from), until: wanted.to && dayStart(wanted.to, 1),
    open_review: wanted.open && "true", limit: PAGE, offset: (page - 1) * PAGE,
  });
  if (!isShown()) return;
  Object.assign(last, { query: query.toString(), ids: found.items.map((i) => i.inspection_id) });
  const pages = Math.max(1, Math.ceil(found.total / PAGE));
  const go = (changes) => {
    const next = new URLSearchParams(Object.entries({ ...wanted, ...changes }).filter(([, v]) => v));
    location.hash = `#/inspections${next.size ? `?${next}` : ""}`;
  };
  const filters = filterForm(products, wanted, go);
  const rows = found.items.map(row);
  const waiting = h("div", { class: "queue", "aria-live": "polite" });
  replace(place,
    h("div", { class: "head" }, h("h1", {}, "Inspections"), h("p", { class: "muted" }, `${number(found.total)} found`), waiting),
    filters,
    rows.length ? h("div", { class: "tablebox" }, h("table", { class: "list" },
      h("thead", {}, h("tr", {}, ["Verdict", "Part", "Product", "Filed", "Findings", "p-value", "Decision", "Why"].map((t, i) => h("th", { scope: "col", class: i === 4 || i === 5 ? "num" : null }, t)))),
      h("tbody", {}, rows)))
      : h("p", { class: "notice" }, "Nothing fits. ", h("a", { href: "#/inspections" }, "Show all"), " or start one: ", h("code", {}, "refdiff inspect --part ID")),
    pages > 1 && h("nav", { class: "pages", "aria-label": "Pages of the list" },
      h("button", { type: "button", disabled: page <= 1, onclick: () => go({ page: page - 1 }) }, "← Newer"),
      h("span", {}, `Page ${page} of ${pages}`),
      h("button", { type: "button", disabled: page >= pages, onclick: () => go({ page: page + 1 }) }, "Older →")));

  const links = rows.map((r) => r.querySelector("a"));
  const step = (by) => {
    const at = links.indexOf(document.activeElement);
    links[Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
  };
  onThisPage([
    ["j k", "next, previous inspection; Enter opens it", (k) => step(k === "j" ? 1 : -1)],
    ["o", "only open reviews, all", () => go({ open: wanted.open ? "" : "1", page: "" })],
    ["/", "the filters", () => filters.querySelector("select, input").focus()],
    ["n p", "older, newer page", (k) => { const to = page + (k === "n" ? 1 : -1); if (to >= 1 && to <= pages) go({ page: to }); }],
  ]);
  await watchQueue(waiting, isShown, onLeave);
}

/** A day in the reader's zone as a point in time. */
function dayStart(day, plus = 0) {
  const [year, month, date] = day.split("-").map(Number);
  return new Date(year, month - 1, date + plus).toISOString();
}

function filterForm(products, wanted, go) {
  const controls = {
    product: select([["", "all products"], ...products.map((p) => [p, p])], wanted.product),
    verdict: select([["", "all verdicts"], ["PASS", "PASS"], ["FAIL", "FAIL"], ["REVIEW", "REVIEW"]], wanted.verdict),
    part_id: h("input", { type: "search", value: wanted.part_id, maxlength: 128, autocomplete: "off" }),
    from: h("input", { type: "date", value: wanted.from }),
    to: h("input", { type: "date", value: wanted.to }),
  };
  const open = h("input", { type: "checkbox", checked: Boolean(wanted.open) });
  const apply = () => go({ ...Object.fromEntries(Object.entries(controls).map(([k, c]) => [k, c.value.trim()])), open: open.checked ? "1" : "", page: "" });
  for (const control of [...Object.values(controls), open]) control.addEventListener("change", apply);
  return h("form", { class: "filters", role: "search", "aria-label": "Filter inspections", onsubmit: (e) => { e.preventDefault(); apply(); } },
    field("Product", controls.product), field("Verdict", controls.verdict), field("Part", controls.part_id),
    field("From", controls.from), field("To", controls.to),
    h("label", { class: "check" }, open, " Open reviews only"));
}

function row(item) {
  const href = `#/inspections/${encodeURIComponent(item.inspection_id)}`;
  const open = item.verdict === "REVIEW" && !item.decision;
  return h("tr", {},
    h("td", {}, verdict(item.verdict)),
    h("th", { scope: "row" }, h("a", { href }, item.part_id)),
    h("td", {}, item.product), h("td", {}, when(item.created_at)),
    h("td", { class: "num" }, number(item.findings)), h("td", { class: "num" }, number(item.p_value, 2)),
    h("td", {}, item.decision ? `${DECIDED[item.decision]} by ${item.decided_by}` : open ? h("strong", {}, "open") : ""),
    h("td", { class: "why" }, item.verdict_reason));
}

export const DECIDED = { accept: "accepted", override: "overridden" };

const SHOWN_WAITING = 5; // by name, e.g. to cancel one

async function watchQueue(place, isShown, onLeave) {
  let timer = null;
  onLeave(() => clearTimeout(timer));
  const look = async () => {
    const queue = await get("/v1/inspections/queue").catch(() => null);
    if (!isShown() || !queue) return;
    const n = queue.items.length;
    const links = queue.items.slice(0, SHOWN_WAITING).flatMap((job) => [" ", h("a", { href: `#/inspections/${encodeURIComponent(job.inspection_id)}` }, job.part_id)]);
    replace(place, n > 0 && facts([["In work", [`${n} inspection${n === 1 ? "" : "s"}${queue.running ? ", one runs" : ""}:`, ...links, n > SHOWN_WAITING ? " …" : ""]]]));
    timer = setTimeout(look, n ? 3000 : 15000);
  };
  await look();
}
