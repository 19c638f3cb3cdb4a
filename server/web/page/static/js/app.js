// The shell: which page is shown, who one is, the shortcuts that work everywhere.

import { ApiError, get, key, onKeyNeeded, signIn, signOut as forget } from "./api.js";
import { showAudit } from "./audit.js";
import { showBlind } from "./blind.js";
import { field, h, replace, say } from "./dom.js";
import { showGoldens } from "./goldens.js";
import { showInspection } from "./inspection.js";
import { listen, onEveryPage, onThisPage, showHelp } from "./keys.js";
import { showList } from "./list.js";

const PAGES = [
  ["inspections", "Inspections", "i"],
  ["blind", "Blind checks", "c"],
  ["goldens", "Golden samples", "g"],
  ["audit", "Rates and audit", "t"],
];
const main = document.getElementById("main");
let leave = null; // ends what the shown page has running
let shown = 0;

/** Who this is: {name, role, needs_key}. */
export const me = { name: "", role: "viewer", may: (role) => RANK[me.role] >= RANK[role] };
const RANK = { viewer: 0, inspector: 1, admin: 2 };

async function show() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "inspections", ...rest] = path.split("/").map(decodeURIComponent);
  const query = new URLSearchParams(search);
  const turn = ++shown;
  leave?.();
  leave = null;
  onThisPage([]);
  const known = PAGES.some(([name]) => name === page) ? page : "inspections";
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.page === known) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = h("div", { class: `page ${known}` }, h("p", { class: "muted" }, "Loading …"));
  replace(main, place);
  const context = { place, query, me, rest, isShown: () => turn === shown, onLeave: (end) => { leave = end; } };
  try {
    if (!me.name) await whoAmI();
    if (known === "inspections") await (rest[0] ? showInspection : showList)(context);
    else await { blind: showBlind, goldens: showGoldens, audit: showAudit }[known](context);
    if (turn !== shown) return;
    const title = place.querySelector("h1");
    document.title = `${title?.textContent ?? "RefDiff"} · RefDiff Inspector`;
    if (document.activeElement === document.body || document.activeElement === main) main.focus({ preventScroll: true });
  } catch (error) {
    if (turn !== shown || error.name === "AbortError") return;
    replace(place, h("h1", {}, error.status === 404 ? "Not found" : "That did not work"),
      h("p", { class: "notice bad" }, error instanceof ApiError ? error.message : `${error}`),
      h("p", {}, h("button", { type: "button", onclick: show }, "Try again"), " ", h("a", { href: "#/inspections" }, "All inspections")));
    if (!(error instanceof ApiError)) console.error(error);
  }
}

async function whoAmI() {
  Object.assign(me, await get("/v1/me"));
  replace(document.getElementById("who"), h("span", { title: `role: ${me.role}` }, me.name),
    me.needs_key && h("button", { type: "button", class: "plain", onclick: signOut }, "Sign out"),
    h("button", { type: "button", class: "plain", title: "Keyboard shortcuts (?)", "aria-label": "Keyboard shortcuts", onclick: showHelp }, "?"));
}

async function signOut() {
  key.drop();
  const provider = await forget();
  me.name = "";
  if (provider) {
    location.assign(provider);
    return;
  }
  replace(document.getElementById("who"));
  show();
}

const BACK = "refdiff-back"; // in sessionStorage: the place that somebody who signs in comes back to

function leaveToSignIn(address) {
  sessionStorage.setItem(BACK, location.hash);
  location.assign(address);
}

function askForKey(why, signInAt) {
  const dialog = document.getElementById("dialog");
  const entry = h("input", { type: "password", name: "key", autocomplete: "off", spellcheck: "false", required: true, autofocus: !signInAt });
  return new Promise((resolve) => {
    replace(dialog, h("form", { method: "dialog", onsubmit: () => { dialog.returnValue = "given"; } },
      h("h2", { id: "dialog-title" }, signInAt ? "Sign in" : "API key"),
      h("p", {}, why || "This server asks who you are."),
      signInAt && h("p", {}, h("button", { type: "button", class: "primary", autofocus: true, onclick: () => leaveToSignIn(signInAt) }, "Sign in with your account")),
      field("Key", entry, "It stays in this tab and is forgotten when you close it."),
      h("div", { class: "actions" }, h("button", { class: signInAt ? "" : "primary", value: "given" }, signInAt ? "Use the key" : "Sign in"),
        h("button", { type: "button", onclick: () => dialog.close("") }, "Cancel"))));
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue ? entry.value.trim() : null), { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

function start() {
  replace(document.getElementById("nav"), PAGES.map(([name, text, k]) =>
    h("a", { href: `#/${name}`, "data-page": name, "aria-keyshortcuts": k }, text)));
  onEveryPage([
    ...PAGES.map(([name, text, k]) => [k, text, () => { location.hash = `#/${name}`; }]),
    ["?", "this help", showHelp],
  ]);
  onKeyNeeded(askForKey);
  listen();
  addEventListener("hashchange", () => useLink().then(show));
  addEventListener("unhandledrejection", (e) => say(e.reason?.message ?? String(e.reason), "bad"));
  useLink().then(show);
}

/** The link that `refdiff serve` prints: its token signs this browser in, once, and leaves the address bar at once. */
async function useLink() {
  const back = sessionStorage.getItem(BACK);
  sessionStorage.removeItem(BACK);
  if (back && !location.hash) history.replaceState(null, "", back);
  const token = location.hash.match(/^#\/login\/(.+)$/)?.[1];
  if (!token) return;
  history.replaceState(null, "", "#/inspections");
  key.drop();
  me.name = "";
  await signIn(token).catch((error) => say(error.message, "bad"));
}

start();
