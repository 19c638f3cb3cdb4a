// The golden samples of a product: look, flag, retire, enrol.

import { get, patch, picture, post, put, remove, upload } from "./api.js";
import { showNetwork } from "./network.js";
import { facts, field, h, number, percent, replace, say, select, when } from "./dom.js";
import { onThisPage } from "./keys.js";

const PAGE = 60;
const SOURCES = { disposition: "learned from a decision", blind_check: "learned from a blind check" };
const STATUSES = [["", "any status"], ["active", "active"], ["flagged", "flagged"], ["retired", "retired"]];

export async function showGoldens({ place, rest: [named], query, me, isShown, onLeave }) {
  const products = await get("/v1/products");
  const product = named ?? products[0];
  const to = (name, more = {}) => { location.hash = `#/goldens/${encodeURIComponent(name)}?${new URLSearchParams(Object.entries(more).filter(([, v]) => v))}`; };
  const enrolling = me.may("admin") ? enrolForm(product, products, (name) => (name === product ? reload() : to(name))) : null;
  const head = h("div", { class: "head" }, h("h1", {}, "Golden samples"));
  if (!product) {
    replace(place, head, h("p", { class: "notice" }, "There is no product yet: enrol photos of good parts."), enrolling);
    return;
  }
  const status = query.get("status") ?? "";
  const chooser = select(products.map((p) => [p, p]), product, { onchange: () => to(chooser.value) });
  const filter = select(STATUSES, status, { onchange: () => to(product, { status: filter.value }) });
  const about = h("div", {});
  const network = h("section", { "aria-labelledby": "h-network" });
  const proposed = h("div", {});
  const grid = h("ul", { class: "samples" });
  const more = h("button", { type: "button", hidden: true }, "More");
  replace(place, head, h("div", { class: "filters" }, field("Product", chooser), field("Status", filter)), about, network, proposed, grid, more, enrolling);
  const lazy = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((e) => e.isIntersecting)) {
      lazy.unobserve(target);
      picture(`/v1/goldens/${target.dataset.id}/image`, { max_px: 320 }).then((url) => { target.src = url; }, () => { target.alt += " (not there)"; });
    }
  }, { rootMargin: "300px" });
  onLeave(() => lazy.disconnect());

  let count = 0;
  async function page() {
    const found = await get("/v1/goldens", { product, status, limit: PAGE, offset: count });
    if (!isShown()) return;
    for (const golden of found.items) grid.append(card(golden));
    count += found.items.length;
    more.hidden = count >= found.total;
    more.textContent = `More (${number(found.total - count)})`;
    if (!found.total) replace(grid, h("li", { class: "notice" }, "None."));
  }
  async function reload() {
    count = 0;
    grid.replaceChildren();
    await Promise.all([page(), tell(), propose()]);
  }
  async function propose() {
    const { items } = await get("/v1/references");
    if (!isShown()) return;
    replace(proposed, items.length > 0 && h("section", { "aria-labelledby": "h-proposed" }, h("h2", { id: "h-proposed" }, `Proposed as golden samples (${items.length})`),
      h("p", { class: "muted" }, "A golden sample decides about every later part: an admin or a second person approves it."),
      h("ul", { class: "samples" }, items.map((item) => proposal(item, me, reload)))));
  }
  async function tell() {
    const known = await get(`/v1/products/${encodeURIComponent(product)}`);
    if (!isShown()) return;
    const c = known.calibration;
    replace(about, facts([
      ["Samples", Object.entries(known.goldens).filter(([, n]) => n).map(([s, n]) => `${n} ${s}`).join(", ") || "none"],
      ["Calibration", c ? `${c.n} good parts, ${c.stale ? "stale: measured again at the next inspection" : "up to date"}` : "none yet: the first inspection makes it"],
      ["False-reject rate", c && `${number(c.alpha.requested, 3)} asked for, ${number(c.alpha.attained, 3)} possible${c.in_doubt ? ", one sample being in doubt" : ""}${c.can_fail ? "" : "; too few parts to fail anything"}`],
      ["Stand out", c?.stand_out && `${c.stand_out.map((o) => `${o.golden_id} (scores ${number(o.score, 3)})`).join(", ")}: a defect? Parts ${c.can_fail ? "fail" : "go to REVIEW"} above ${number(c.limit, 3)}${c.limit_if_good === c.limit ? "" : ` while ${c.stand_out[0].golden_id} is in doubt, above ${number(c.limit_if_good, 3)} once it is activated`}, without them above ${number(c.limit_without, 3)}`],
      ["Found", c?.detectable && [`${percent(c.detectable.share)} of what is drawn in each size (contrast ${c.detectable.contrast}):`, c.detectable.summary.map((line) => h("div", {}, line))]],
      ["Counted", c?.components?.length > 0 && c.components.map((n, i) => counted(known, i + 1, c.component_names?.[i], n))],
      ["Not counted", c?.unrecognised_names?.length > 0 && c.unrecognised_names.map((name) => counted(known, name, name, null))],
    ]));
    showNetwork(network, known, { me, isShown, done: tell });
  }
  /** What is counted, with what people call it; component: its number, or a name by which nothing is recognised any more. */
  function counted(known, component, called, n) {
    const path = `/v1/products/${encodeURIComponent(known.name)}/components/${encodeURIComponent(component)}`;
    const said = n === null ? `${called}: nothing that is counted looks like it any more` : `${called ?? `component ${component}`}: ${n}`;
    if (!me.may("admin")) return h("div", {}, said);
    const name = h("input", { type: "text", maxlength: 48, required: true, autocomplete: "off", "aria-label": `Name of ${called ?? `component ${component}`}`, placeholder: called ? "another name" : "What do you call it?" });
    const act = (work, done) => async (event) => {
      event.preventDefault();
      try {
        await work();
        say(done());
        await tell();
      } catch (error) {
        say(error.message, "bad");
      }
    };
    return h("div", { class: "naming" }, h("p", {}, said), h("form", { class: "ask", onsubmit: act(() => put(path, { name: name.value.trim() }), () => `Reports call it ${name.value.trim()}.`) },
      n !== null && [name, h("button", { type: "submit" }, called ? "Correct" : "Name it")],
      called && h("button", { type: "button", onclick: act(() => remove(path), () => `${called} is no name any more.`) }, "Remove")));
  }
  function card(golden) {
    const image = h("img", { alt: `Golden sample ${golden.golden_id}`, loading: "lazy", "data-id": golden.golden_id });
    lazy.observe(image);
    const item = h("li", { class: `golden ${golden.status}`, id: golden.golden_id, tabindex: "-1" },
      image,
      h("div", {}, h("strong", {}, golden.golden_id), " ", h("span", { class: `tag ${golden.status}` }, golden.status),
        SOURCES[golden.source] && h("span", { class: "tag" }, SOURCES[golden.source])),
      h("small", {}, golden.filename, h("br"), when(golden.enrolled_at), golden.enrolled_by ? ` by ${golden.enrolled_by}` : "", golden.part_group ? `, group ${golden.part_group}` : ""),
      golden.note && h("p", { class: "note" }, golden.note),
      me.may("admin") && h("div", { class: "actions" },
        golden.status !== "active" && h("button", { type: "button", onclick: () => change("active") }, "Activate"),
        golden.status === "active" && h("button", { type: "button", onclick: () => change("flagged") }, "Flag"),
        golden.status !== "retired" && h("button", { type: "button", onclick: () => change("retired") }, "Retire")));
    async function change(to_) {
      const note = await ask(to_, golden);
      if (note === null) return;
      try {
        const changed = card(await patch(`/v1/goldens/${golden.golden_id}`, { status: to_, note }));
        item.replaceWith(changed);
        changed.focus();
        say(`${golden.golden_id}: ${to_}.`);
        await tell();
      } catch (error) {
        say(error.message, "bad");
      }
    }
    return item;
  }
  more.addEventListener("click", page);
  await reload();
  document.getElementById(query.get("id") ?? "")?.focus();
  onThisPage([["/", "the product", () => chooser.focus()], ["e", "enrol photos", () => enrolling?.querySelector("input[type=file]").focus()]]);
}

/** A photo that one person proposed; somebody else, or an admin, decides. */
function proposal(item, me, done) {
  const image = h("img", { alt: `Photo of part ${item.part_id}` });
  const path = `/v1/inspections/${encodeURIComponent(item.inspection_id)}`;
  picture(`${path}/pictures/query`, { max_px: 320 }).then((url) => { image.src = url; }, () => { image.alt += " (not there)"; });
  const decide = async (decision) => {
    try {
      const made = await post(`/v1/references/${encodeURIComponent(item.inspection_id)}`, { decision });
      say(`Part ${item.part_id}: ${made.learned?.outcome ?? "approved"}.`);
      await done();
    } catch (error) {
      say(error.message, "bad");
    }
  };
  return h("li", { class: "golden proposed" }, image,
    h("div", {}, h("a", { href: `#/inspections/${encodeURIComponent(item.inspection_id)}` }, "Part ", item.part_id), ` (${item.product})`),
    h("small", {}, `${item.by}, `, when(item.at)), item.reason && h("p", { class: "note" }, item.reason),
    item.hung && h("p", { class: "note" }, "Approved, but its enrolment hung twice; once that is mended, approve it again."),
    me.may("inspector") && h("div", { class: "actions" },
      (me.may("admin") || me.name !== item.by) && h("button", { type: "button", onclick: () => decide("approve") }, "Approve"),
      h("button", { type: "button", onclick: () => decide("refuse") }, "Refuse")));
}

const DOES = { active: "Take it (back) into use", flagged: "Mark it for a look; it stays in use", retired: "Take it out of use" };

/** A note about a change of status; null if the person thinks better of it. */
function ask(status, golden) {
  const dialog = document.getElementById("dialog");
  const note = h("input", { type: "text", maxlength: 500, autofocus: true, autocomplete: "off" });
  return new Promise((resolve) => {
    replace(dialog, h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, `${DOES[status]}?`), h("p", {}, h("code", {}, golden.golden_id), " ", golden.filename),
      field("Note", note, "Kept with the sample; may be empty."),
      h("div", { class: "actions" }, h("button", { class: "primary", value: "yes" }, status === "retired" ? "Retire" : status === "flagged" ? "Flag" : "Activate"),
        h("button", { type: "button", onclick: () => dialog.close("") }, "Cancel"))));
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? note.value.trim() : null), { once: true });
    dialog.showModal();
  });
}

function enrolForm(product, products, done) {
  const name = h("input", { type: "text", value: product ?? "", required: true, maxlength: 64, list: "products", autocomplete: "off" });
  const files = h("input", { type: "file", multiple: true, accept: "image/*,.tif,.tiff,.bmp,.pgm", required: true });
  const scale = h("input", { type: "number", min: 0, step: "any", inputmode: "decimal" });
  const group = h("input", { type: "text", maxlength: 128, autocomplete: "off" });
  const send = h("button", { class: "primary", type: "submit" }, "Enrol");
  const result = h("div", { role: "status" });
  async function submit(event) {
    event.preventDefault();
    const form = new FormData();
    form.set("product", name.value.trim());
    if (scale.value) form.set("scale_mm_per_px", scale.value);
    if (group.value.trim()) form.set("part_group", group.value.trim());
    for (const file of files.files) form.append("images", file);
    send.disabled = true;
    replace(result, h("p", { class: "muted" }, `Enrolling ${files.files.length} photo(s) …`));
    try {
      const made = await upload("/v1/goldens", form);
      const lines = (title, list, text) => list.length > 0 && h("details", { open: true }, h("summary", {}, `${list.length} ${title}`), h("ul", {}, list.map((x) => h("li", {}, text(x)))));
      replace(result, h("p", { class: "notice" }, `${made.added.length} enrolled; ${made.n_in_bank} in the bank.`),
        lines("already there", made.already_there, (r) => `${r.file}: ${r.reason}`), lines("refused", made.refused, (r) => `${r.file}: ${r.reason}`),
        lines("flagged", made.flagged, (g) => `${g.filename}: ${g.note}`), lines("notes", made.notes, (n) => n));
      files.value = "";
      await done(made.product);
    } catch (error) {
      replace(result, h("p", { class: "notice bad" }, error.message));
    } finally {
      send.disabled = false;
    }
  }
  return h("section", { "aria-labelledby": "h-enrol" }, h("h2", { id: "h-enrol" }, "Enrol photos of good parts"),
    h("datalist", { id: "products" }, products.map((p) => h("option", { value: p }))),
    h("form", { class: "filters", onsubmit: submit }, field("Product", name), field("Photos", files),
      field("mm per px", scale, "if known"), field("Part group", group, "if all show one part"), send), result);
}
