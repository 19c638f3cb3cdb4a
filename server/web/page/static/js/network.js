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
  if (running) {
    place.timer = setTimeout(async () => {
      if (!isShown()) return;
      const now = await get(path).catch(() => known); // a server that is away for a moment: the next look tells
      if (!isShown()) return;
      if (now.fitting?.state === "running") showNetwork(place, now, { me, isShown, done });
      else await done();
    }, LOOK_MS);
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
      ["Being fitted", running && progress(fitting)],
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
    "not kept": `not kept: it found ${number(fitted)} of ${number(n)} synthetic defects, the shared network ${number(shared)}`,
    declined: "stopped or removed; none begins by itself",
    failed: `failed: ${last.message}`,
    stopped: "stopped with the server; it goes on",
    begun: "it ended with the process",
    kept: "kept",
  };
  return [came[last.outcome] ?? last.outcome, " (", last.by, ", ", when(last.created_at), ")"];
}

function progress({ stage, done, total, waits, by }) {
  const what = waits ? "waits until there is nothing to inspect" : stage || "begins";
  return [h("progress", { "aria-label": "Progress of the fit", value: total ? done : null, max: total || null }), ` ${what}`,
    total > 0 && ` ${number(done)} of ${number(total)}`, ` (${by})`];
}
