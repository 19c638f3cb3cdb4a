// Part and reference on top of each other: slide, flicker, anomaly map, numbered findings, zoom.

import { picture, values } from "./api.js";
import { h, s, words } from "./dom.js";

const FLICKER_MS = 600; // well below the 3 flashes a second that can harm
const MAX_ZOOM = 24;
const MODES = [["slide", "Slide", "s"], ["flicker", "Flicker", "f"], ["part", "Part", "p"], ["reference", "Reference", "r"]];
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * sources: {query, reference, anomaly} as API paths, missing ones null. size: {width, height} of the photo in px, in which
 * the findings' boxes are.
 */
export class Viewer {
  constructor(sources, size, findings) {
    Object.assign(this, { sources, size, findings, mode: "slide", zoom: 1, x: 0.5, y: 0.5, timer: null });
    this.query = h("img", { class: "layer query", alt: "Photo of the part", draggable: "false" });
    this.reference = h("img", { class: "layer reference", alt: "Reference, registered to the part", draggable: "false" });
    this.heat = h("img", { class: "layer heat", alt: "", draggable: "false" });
    this.boxes = this.drawBoxes();
    this.divider = h("div", { class: "divider", "aria-hidden": "true" });
    this.canvas = h("div", { class: "canvas" }, this.reference, this.query, this.heat, this.boxes, this.divider);
    this.labels = [h("span", { class: "label left" }, "Part"), h("span", { class: "label right" }, "Reference")];
    this.reading = h("output", { class: "label reading", hidden: true });
    this.stage = h("div", { class: "stage", role: "group", "aria-label": "Pictures" }, this.canvas, this.labels, this.reading);
    this.stage.style.setProperty("--ratio", `${size.width} / ${size.height}`);
    this.slider = h("input", { type: "range", min: 0, max: 100, value: 50, step: 1, oninput: () => this.paint() });
    this.opacity = h("input", { type: "range", min: 0, max: 100, value: sources.anomaly ? 45 : 0, step: 5, oninput: () => this.paint() });
    this.showBoxes = h("input", { type: "checkbox", checked: true, onchange: () => this.paint() });
    this.buttons = Object.fromEntries(MODES.map(([mode, text, key]) => [mode, h("button", {
      type: "button", "aria-pressed": "false", title: `${text} (${key})`, onclick: () => this.setMode(mode) }, text)]));
    this.element = h("section", { class: "viewer", "aria-label": "Part and reference" }, this.stage, this.toolbar());
    this.listen();
    this.load();
    this.setMode("slide");
  }

  toolbar() {
    return h("div", { class: "tools" },
      h("div", { class: "segments", role: "group", "aria-label": "Show" }, Object.values(this.buttons)),
      h("label", {}, "Slide ", this.slider),
      h("label", { hidden: !this.sources.anomaly }, "Anomaly map ", this.opacity),
      h("label", { hidden: !this.findings.length }, this.showBoxes, " Findings"),
      h("div", { class: "segments", role: "group", "aria-label": "Zoom" },
        h("button", { type: "button", "aria-label": "Zoom out", onclick: () => this.zoomBy(1 / 1.5) }, "−"),
        h("button", { type: "button", "aria-label": "Whole picture", onclick: () => this.whole() }, "Fit"),
        h("button", { type: "button", "aria-label": "Zoom in", onclick: () => this.zoomBy(1.5) }, "+")));
  }

  shortcuts() {
    return [
      ["1 2 3 4 5 6 7 8 9", "zoom to that finding", (key) => this.focus(Number(key) - 1)],
      ["0", "the whole picture", () => this.whole()],
      ["+ -", "zoom in, out", (key) => this.zoomBy(key === "+" ? 1.5 : 1 / 1.5)],
      ["ArrowLeft ArrowRight ArrowUp ArrowDown", "move; ← → slide while not zoomed", (key) => this.move(key)],
      ["s", "slide between part and reference", () => this.setMode("slide")],
      ["f", "flicker between them", () => this.setMode("flicker")],
      ["Space", "swap part and reference", () => this.swap()],
      ["p r", "part alone, reference alone", (key) => this.setMode(key === "p" ? "part" : "reference")],
      ["m", "anomaly map on, off", () => this.toggleMap()],
      ["b", "findings on, off", () => { this.showBoxes.checked = !this.showBoxes.checked; this.paint(); }],
    ];
  }

  async load() {
    const set = async (img, path) => {
      if (!path) return;
      try {
        img.src = await picture(path);
        await img.decode();
      } catch (error) { // an error without a status is the browser's, which cannot show what came
        this.stage.append(h("p", { class: "missing" }, `${img.alt || "Anomaly map"}: ${error.status ? error.message : "not there"}`));
      }
    };
    if (this.sources.values) values(this.sources.values).then((found) => { this.measured = found; }, () => {});
    await Promise.all([set(this.query, this.sources.query), set(this.reference, this.sources.reference), set(this.heat, this.sources.anomaly)]);
    this.element.dataset.loaded = "true";
  }

  drawBoxes() {
    const { width, height } = this.size;
    const unit = Math.max(width, height) / 100;
    return s("svg", { class: "boxes", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, this.findings.map((f, i) => {
      const { x0, y0, x1, y1 } = f.location;
      const low = y0 < 6 * unit;
      return s("g", { class: f.within_limits ? "box ok" : "box", onclick: () => this.focus(i) },
        s("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, "vector-effect": "non-scaling-stroke" }),
        s("g", { class: "tag", "data-x": x0, "data-y": low ? y1 : y0, "data-low": low ? 1 : 0 },
          s("rect", { width: 24, height: 22, rx: 3 }), s("text", { x: 12, y: 16 }, String(i + 1))));
    }));
  }

  setMode(mode) {
    clearInterval(this.timer);
    this.mode = mode;
    this.flipped = mode === "reference";
    if (mode === "flicker" && !calm.matches) this.timer = setInterval(() => { this.flipped = !this.flipped; this.paint(); }, FLICKER_MS);
    for (const [name, button] of Object.entries(this.buttons)) button.setAttribute("aria-pressed", String(name === mode));
    this.paint();
  }

  swap() {
    if (this.mode === "slide") this.setMode("part");
    clearInterval(this.timer);
    this.flipped = !this.flipped;
    this.paint();
  }

  toggleMap() {
    this.before ??= 45;
    if (Number(this.opacity.value)) [this.before, this.opacity.value] = [this.opacity.value, 0];
    else this.opacity.value = this.before;
    this.paint();
  }

  paint() {
    const slide = this.mode === "slide";
    // the slider is about what is on the screen, the clip about the picture
    const at = Math.min(100, Math.max(0, 100 * this.x + (Number(this.slider.value) - 50) / this.zoom));
    this.query.style.clipPath = slide ? `inset(0 ${100 - at}% 0 0)` : "";
    this.query.style.visibility = !slide && this.flipped ? "hidden" : "";
    this.heat.style.opacity = String(Number(this.opacity.value) / 100);
    this.boxes.style.display = this.showBoxes.checked ? "" : "none";
    this.divider.style.display = slide ? "" : "none";
    this.divider.style.left = `${at}%`;
    this.slider.disabled = !slide;
    this.labels[0].hidden = !slide && this.flipped;
    this.labels[1].hidden = !slide && !this.flipped;
    this.canvas.style.transform = `scale(${this.zoom}) translate(${50 - 100 * this.x}%, ${50 - 100 * this.y}%)`;
    this.canvas.style.setProperty("--zoom", String(this.zoom));
    this.stage.classList.toggle("zoomed", this.zoom > 1);
    this.sizeTags();
  }

  /** Numbers keep their size on the screen, whatever the zoom. */
  sizeTags() {
    const shown = this.stage.clientWidth || 800;
    const scale = this.size.width / (shown * this.zoom);
    for (const tag of this.boxes.querySelectorAll(".tag")) {
      const { x, y, low } = tag.dataset;
      tag.setAttribute("transform", `translate(${x} ${Number(y) + (Number(low) ? 3 : -25) * scale}) scale(${scale})`);
    }
  }

  whole() { this.zoom = 1; this.x = this.y = 0.5; this.current = null; this.changed(); }

  zoomBy(factor) {
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    this.changed();
  }

  focus(index) {
    const finding = this.findings[index];
    if (!finding) return;
    const { x0, y0, x1, y1 } = finding.location;
    const { width, height } = this.size;
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, 0.45 / Math.max((x1 - x0) / width, (y1 - y0) / height, 0.03)));
    this.x = (x0 + x1) / 2 / width;
    this.y = (y0 + y1) / 2 / height;
    this.current = index;
    this.changed();
    this.element.dispatchEvent(new CustomEvent("finding", { detail: index }));
  }

  changed() {
    const half = 0.5 / this.zoom;
    this.x = Math.min(1 - half, Math.max(half, this.x));
    this.y = Math.min(1 - half, Math.max(half, this.y));
    this.paint();
  }

  move(key) {
    const step = 0.15 / this.zoom;
    if (this.zoom === 1 && this.mode === "slide") {
      if (key === "ArrowLeft" || key === "ArrowRight") {
        this.slider.value = Number(this.slider.value) + (key === "ArrowRight" ? 5 : -5);
        this.paint();
      }
      return;
    }
    if (key === "ArrowLeft") this.x -= step;
    if (key === "ArrowRight") this.x += step;
    if (key === "ArrowUp") this.y -= step;
    if (key === "ArrowDown") this.y += step;
    this.changed();
  }

  listen() {
    let from = null;
    this.stage.addEventListener("pointerdown", (e) => {
      if (e.target.closest(".tag")) return;
      from = { px: e.clientX, py: e.clientY, x: this.x, y: this.y };
      this.stage.setPointerCapture(e.pointerId);
      this.drag(e, from);
    });
    this.stage.addEventListener("pointermove", (e) => {
      if (from) this.drag(e, from);
      this.read(e);
    });
    this.stage.addEventListener("pointerleave", () => { this.reading.hidden = true; });
    for (const end of ["pointerup", "pointercancel"]) this.stage.addEventListener(end, () => { from = null; });
    this.stage.addEventListener("wheel", (e) => {
      if (!e.ctrlKey && this.zoom === 1 && e.deltaY > 0) return; // let the page scroll
      e.preventDefault();
      this.zoomBy(Math.exp(-e.deltaY / 300));
    }, { passive: false });
    this.sizes = new ResizeObserver(() => this.sizeTags());
    this.sizes.observe(this.stage);
  }

  drag(event, from) {
    const box = this.stage.getBoundingClientRect();
    if (this.zoom > 1) {
      this.x = from.x - (event.clientX - from.px) / box.width / this.zoom;
      this.y = from.y - (event.clientY - from.py) / box.height / this.zoom;
      this.changed();
    } else if (this.mode === "slide") {
      this.slider.value = (100 * (event.clientX - box.left)) / box.width;
      this.paint();
    }
  }

  /** What the part measures under the pointer. */
  read(event) {
    if (!this.measured) return;
    const { width, height, values: known } = this.measured;
    const box = this.canvas.getBoundingClientRect(); // as it is zoomed and moved
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    const value = x >= 0 && y >= 0 && x < width && y < height ? known[y * width + x] : NaN;
    this.reading.hidden = !Number.isFinite(value);
    if (Number.isFinite(value)) this.reading.textContent = `${value.toFixed(this.sources.unit === "mm" ? 3 : 1)} ${this.sources.unit} at ${x}, ${y}`;
  }

  close() {
    clearInterval(this.timer);
    this.sizes.disconnect();
  }
}

export function findingTitle(finding, index) {
  return `${index + 1}. ${finding.named?.name ?? words(finding.type)}, ${finding.location.region}`;
}
