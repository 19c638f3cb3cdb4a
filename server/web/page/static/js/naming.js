// What people call a finding: shown, given, corrected, taken away. Later findings like it take the name.

import { get, put, remove } from "./api.js";
import { h, replace, say, when } from "./dom.js";

/** The names of defects that a product has, as suggestions for all fields that name `id` as their list. */
export function knownNames(product, id) {
  const list = h("datalist", { id });
  const load = () => get("/v1/defect-names", { product }).then(
    ({ names }) => replace(list, names.map((n) => h("option", { value: n.name }))),
    () => {}); // only suggestions
  load();
  return { list, load };
}

/** `like finding 2 of part 4398, confirmed by A. Smith`, with a link there. */
export function likeness({ like }) {
  const there = h("a", { href: `#/inspections/${encodeURIComponent(like.inspection_id)}` }, `finding ${like.finding.replace(/^f/, "")} of part ${like.part_id}`);
  return h("span", {}, "like ", there, `, confirmed by ${like.confirmed_by}`);
}

/** naming: the newest word of a person about the finding, or none. */
export function naming(report, finding, index, said, me, known) {
  const place = h("div", { class: "naming" });
  const path = `/v1/inspections/${encodeURIComponent(report.inspection_id)}/findings/${finding.id}/name`;
  const draw = (current) => {
    const given = current?.name ? h("p", {}, "Named ", h("strong", {}, current.name), ` by ${current.by}, `, when(current.created_at), current.note && `: ${current.note}`) : null;
    if (!me.may("inspector")) {
      replace(place, given);
      return;
    }
    const field = h("input", { type: "text", maxlength: 48, required: true, autocomplete: "off", list: known.list.id, "aria-label": `Name of finding ${index + 1}`, placeholder: current?.name ? "another name" : "What do you call it?" });
    const act = (work) => async (event) => {
      event.preventDefault();
      const buttons = [...place.querySelectorAll("button")];
      buttons.forEach((b) => { b.disabled = true; });
      try {
        const made = await work();
        draw(made);
        known.load();
        say(made.name ? `Finding ${index + 1}: ${made.name}. Later findings like it can take this name.` : `Finding ${index + 1} has no name any more.`);
        place.querySelector("input").focus();
      } catch (error) {
        buttons.forEach((b) => { b.disabled = false; });
        say(error.message, "bad");
      }
    };
    const agrees = finding.named && !current?.name && h("button", { type: "button", onclick: act(() => put(path, { name: finding.named.name })) }, `It is ${finding.named.name}`);
    replace(place, given, h("form", { class: "ask", onsubmit: act(() => put(path, { name: field.value.trim() })) },
      field, h("button", { type: "submit" }, current?.name ? "Correct" : "Name it"), agrees,
      current?.name && h("button", { type: "button", onclick: act(() => remove(path)) }, "Remove")));
  };
  draw(said);
  return place;
}
