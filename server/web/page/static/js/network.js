// The network of a product's own: whether one is in use, what it found, and how far a fit is.

import { get, post, remove } from "./api.js";
import { facts, h, number, replace, say, when } from "./dom.js";

const LOOK_MS = 2000;

/** Fill `place` with what is known of a product; done: called when something else of the product has changed. */
export function showNetwork(place, known, { me, isShown, done }) {
  const path = `/v1/products/${encodeURIComponent(known.name)}`;
  const { network, fitting } = known;
  const running = fitting?.state === "running";
  clearTimeout(place.timer);
  const state = h("span", {});
  const look = async () => {
    if (!isShown()) return;
    try {
      const now = await get(path);
      if (!isShown() || place.look !== look) return; // drawn anew meanwhile
      // only what moves is drawn anew: buttons keep the focus
      if (now.fitting?.state === "running" && now.fitting.started_at === fitting.started_at) replace(state, progress(now.fitting));
      else return void await done();
    } catch { /* a server that is away for a moment: the next look tells */ }
    if (isShown() && place.look === look) place.timer = setTimeout(look, LOOK_MS);
  };
  place.look = look;
  if (running) {
    replace(state, progress(fitting));
    place.timer = setTimeout(look, LOOK_MS);
  }
  const act = (work, text) => async (event) => {
    event.target.disabled = true;
    try {
      await work();
      say(text);
      await done();
    } catch (error) {
      event.target.disabled = false;
      say(error.message, "bad");
    }
  };
  const button = (text, work, said, attributes = {}) => h("button", { type: "button", ...attributes, onclick: act(work, said) }, text);
  replace(place, h("h2", { id: "h-network" }, "Network of its own"),
    facts([
      ["In use", network && !network.outdated ? ["since ", when(network.created_at), `, learned from ${network.learned_from}`] : "no: the shared network inspects"],
      ["Found", network && found(network.synthetic_defects)],
      ["Not in use", network?.outdated && `${network.outdated}; fit another`],
      ["Last fit", running ? null : lastFit(known)],
      ["Not begun", !running && known.fit_held_back],
      ["Being fitted", running && state],
    ].map(([name, value]) => [name, value || null])),
    me.may("admin") && h("div", { class: "actions" },
      running ? button("Stop", () => remove(`${path}/fitting`), "It is being stopped.")
        : button(network ? "Fit again" : "Fit a network", () => post(`${path}/network`), "It takes minutes; inspections come first."),
      network && !running && button("Remove", () => remove(`${path}/network`), "The shared network inspects again.")));
}

function found({ n, shared, fitted }) {
  return `${number(fitted)} of ${number(n)} synthetic defects on golden samples that it had not seen; the shared network ${number(shared)}`;
}

function lastFit({ network, last_fit: last }) {
  if (!last || (last.outcome === "kept" && network)) return null;
  const [shared, fitted, n] = last.found ?? [];
  const came = {
    "not kept": `not kept: it found ${number(fitted)} of ${number(n)} synthetic defects, the shared network ${number(shared)}${fitted > shared ? ", the one in use more" : ""}`,
    declined: "stopped or removed; none begins by itself",
    failed: `failed: ${last.message}; after two failures it is tried again only when somebody fits it, or with twice the golden samples`,
    stopped: `interrupted${last.message && `: ${last.message}`}; it goes on by itself where automatic fits are switched on, or when somebody fits it again`,
    begun: "another process fits it, or ended in the midst of it, perhaps for want of memory; then fit it again",
    kept: "kept",
  };
  return [came[last.outcome] ?? last.outcome, " (", last.by, ", ", when(last.created_at), ")"];
}

function progress({ stage, done, total, waits, by }) {
  const what = waits ? "waits until there is nothing to inspect" : stage || "begins";
  return [h("progress", { "aria-label": "Progress of the fit", value: total ? done : null, max: total || null }), ` ${what}`,
    total > 0 && ` ${number(done)} of ${number(total)}`, ` (${by})`];
}
