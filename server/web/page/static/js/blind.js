// The random sample that a person judges without the verdict: one photo after the other.

import { ApiError, get, picture, post } from "./api.js";
import { field, h, replace, say, when } from "./dom.js";
import { onThisPage } from "./keys.js";

const SEEN_MS = 400; // until a photo can be judged: what was pressed twice about the one before is no answer about this one

export async function showBlind({ place, me, isShown }) {
  const queue = await get("/v1/blind-checks");
  if (!isShown()) return;
  const intro = h("details", { class: "muted" }, h("summary", {}, "What is this?"), h("p", {}, `A random ${(100 * queue.share).toFixed(1).replace(".0", "")} % of all inspections is judged by a person who does not see the verdict. `,
    "Only these answers give the rates of false rejects and escapes: other decisions are about parts that were failed or in doubt, and are no fair sample."));
  const skipped = new Set();
  const box = h("div", { class: "blindbox" });
  replace(place, h("div", { class: "head" }, h("h1", {}, "Blind checks"), h("p", { class: "muted", id: "left" })), intro, box);
  let items = queue.items;

  async function next() {
    const item = items.find((i) => !skipped.has(i.inspection_id));
    place.querySelector("#left").textContent = items.length ? `${items.length}${items.length === queue.limit ? " or more" : ""} wait` : "";
    if (!item) {
      replace(box, h("p", { class: "notice" }, items.length ? "The rest was skipped. " : "No part waits for a blind check. ",
        items.length > 0 && h("button", { type: "button", onclick: () => { skipped.clear(); next(); } }, "Show them again")));
      onThisPage([]);
      return;
    }
    const photo = h("img", { alt: `Photo of part ${item.part_id}`, class: "photo" });
    const stage = h("div", { class: "stage plain" }, photo);
    photo.addEventListener("click", (e) => {
      const r = photo.getBoundingClientRect();
      photo.style.transformOrigin = `${(100 * (e.clientX - r.left)) / r.width}% ${(100 * (e.clientY - r.top)) / r.height}%`;
      stage.classList.toggle("near");
    });
    const note = h("input", { type: "text", maxlength: 2000, autocomplete: "off" });
    const consent = h("input", { type: "checkbox" });
    let state = "loading"; // then "shown", then "answering"
    const become = (now) => {
      state = now;
      for (const button of [good, defective]) button.disabled = state !== "shown" || !me.may("inspector");
    };
    const answer = async (judged) => {
      if (state !== "shown" || !me.may("inspector")) return;
      become("answering");
      if (judged === "bad") consent.checked = false;
      try {
        await post(`/v1/blind-checks/${encodeURIComponent(item.inspection_id)}`, { judged, note: note.value.trim(), as_reference: consent.checked });
        say(`Part ${item.part_id}: ${judged === "good" ? "good" : "defective"}.`);
        items = items.filter((i) => i !== item);
      } catch (error) {
        say(error.message, "bad");
        skipped.add(item.inspection_id);
      }
      if (isShown()) await next();
    };
    const skip = () => {
      if (state === "answering") return;
      skipped.add(item.inspection_id);
      next();
    };
    const good = h("button", { type: "button", class: "good", disabled: true, onclick: () => answer("good"), "aria-keyshortcuts": "y" }, "Good ", h("kbd", {}, "y"));
    const defective = h("button", { type: "button", class: "defective", disabled: true, onclick: () => answer("bad"), "aria-keyshortcuts": "x" }, "Defective ", h("kbd", {}, "x"));
    replace(box, stage, h("div", { class: "side" },
      h("h2", {}, "Part ", item.part_id), h("p", { class: "muted" }, item.product, ", ", when(item.created_at)),
      h("p", {}, "Is this part good?"),
      h("div", { class: "actions big" },
        good, defective,
        h("button", { type: "button", onclick: skip }, "Skip ", h("kbd", {}, "n"))),
      field("Note", note), h("label", { class: "check" }, consent, me.may("admin") ? " If good: the photo may become a golden sample" : " If good: propose the photo as a golden sample")));
    onThisPage([
      ["y", "good", () => answer("good"), "once"],
      ["x", "defective", () => answer("bad"), "once"],
      ["n", "skip this one", skip, "once"],
      ["+ -", "look closer, whole picture", (k) => { photo.style.transformOrigin = "center"; stage.classList.toggle("near", k === "+"); }],
      ["/", "the note", () => note.focus()],
    ]);
    try {
      photo.src = await picture(`/v1/blind-checks/${encodeURIComponent(item.inspection_id)}/photo`);
      await photo.decode();
    } catch (error) {
      const why = error instanceof ApiError ? error.message : "it cannot be read";
      photo.replaceWith(h("p", { class: "missing", role: "alert" }, `The photo of part ${item.part_id} cannot be shown: ${why}. Skip this part.`));
      return;
    }
    await new Promise((seen) => { setTimeout(seen, SEEN_MS); });
    become("shown");
  }
  await next();
}
