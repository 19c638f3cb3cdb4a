// Keyboard shortcuts: those of the whole page and those of the view that is shown, and the overlay that tells them.

import { h, replace } from "./dom.js";

let everywhere = [];
let here = [];

/** shortcuts: [key as in KeyboardEvent.key, what it does in words, function, "once" if a held key counts once: what decides] */
export function onEveryPage(shortcuts) { everywhere = shortcuts; }
export function onThisPage(shortcuts) { here = shortcuts; }

const TYPING = new Set(["INPUT", "TEXTAREA", "SELECT"]);

export function isTyping(element) {
  return TYPING.has(element?.tagName) && !["checkbox", "radio", "button", "range"].includes(element.type);
}

export function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (isTyping(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    // a radio or a slider keeps the keys that move it
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    if (event.target.type === "radio" && event.key.startsWith("Arrow")) return;
    // what Enter and the space bar do to a button or a link stays
    if (["Enter", " "].includes(event.key) && event.target.closest("a, button, summary, input")) return;
    const pressed = event.key === " " ? "Space" : event.key;
    const found = [...here, ...everywhere].find(([key]) => key.split(" ").includes(pressed));
    if (found) {
      event.preventDefault();
      if (!event.repeat || found[3] !== "once") found[2](pressed);
    }
  });
}

function group(title, shortcuts) {
  if (!shortcuts.length) return null;
  return h("section", {}, h("h3", {}, title), h("dl", { class: "keys" }, shortcuts.map(([keys, text]) =>
    h("div", {}, h("dt", {}, keys.split(" ").map((k, i) => [i ? " " : "", h("kbd", {}, SHOWN[k] ?? k)])), h("dd", {}, text)))));
}

const SHOWN = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };

export function showHelp() {
  const dialog = document.getElementById("dialog");
  replace(dialog, h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, "Keyboard shortcuts"),
    group("On this page", here), group("Everywhere", everywhere),
    h("section", {}, h("h3", {}, "In a text field"), h("dl", { class: "keys" },
      h("div", {}, h("dt", {}, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter")), h("dd", {}, "send the decision")),
      h("div", {}, h("dt", {}, h("kbd", {}, "Esc")), h("dd", {}, "leave the field")))),
    h("div", { class: "actions" }, h("button", { autofocus: true }, "Close"))));
  dialog.showModal();
}
