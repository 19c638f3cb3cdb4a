// Elements out of plain data, and how values read. Text only ever becomes text: nothing here parses HTML.

/** Make an element. attributes: names as in HTML; on...: listeners; class, dataset; null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  apply(element, attributes);
  element.append(...flat(children));
  return element;
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  apply(element, attributes);
  element.append(...flat(children));
  return element;
}

function apply(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "checked") element.checked = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

function flat(children) {
  return children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);
}

export function replace(element, ...children) {
  element.replaceChildren(...flat(children));
}

/** Tell everybody, also those who cannot see it. */
export function say(text, kind = "") {
  const said = document.getElementById("said");
  said.className = kind;
  said.textContent = "";
  // a changed text is announced, the same one again is not
  requestAnimationFrame(() => { said.textContent = text; });
  clearTimeout(say.timer);
  if (kind !== "bad") say.timer = setTimeout(() => { said.textContent = ""; }, 6000);
}

const SIGNS = { PASS: "✓", FAIL: "✕", REVIEW: "?" };

export function verdict(word) {
  return h("span", { class: `verdict ${word.toLowerCase()}` }, h("span", { "aria-hidden": "true" }, SIGNS[word] ?? ""), word);
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}

/** A stored time (UTC) in the reader's zone. */
export function when(text) {
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return String(text);
  const shown = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return h("time", { datetime: text, title: text }, shown);
}

export function words(name) {
  return String(name).replaceAll("_", " ");
}

/** Name and value pairs as a description list. */
export function facts(rows) {
  return h("dl", { class: "facts" }, rows.filter(([, v]) => v !== null && v !== undefined).map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function field(label, control, hint = null) {
  const id = control.id || `f-${field.count = (field.count ?? 0) + 1}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" }, h("label", { for: id }, label), control,
    hint && h("small", { id: `${id}-hint` }, hint));
}

export function select(options, value, attributes = {}) {
  return h("select", { ...attributes, value: undefined }, options.map(([v, text]) =>
    h("option", { value: v, selected: v === value }, text)));
}
