// A point cloud that can be turned: each point in the colour of its deviation. three.js is loaded when it is first shown.

import { points } from "./api.js";
import { h } from "./dom.js";

const BLUE = [20, 70, 170], RED = [178, 10, 28], WHITE = 247; // as in the difference picture
const THREE = "../three/three.module.min.js", CONTROLS = "../three/OrbitControls.js";

/** path: of the API, x y z and deviation in mm, four float32 a point. reach: mm at which a colour is at its end. */
export function cloudView(path, reach) {
  const canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": "Point cloud, coloured by its deviation; drag or use the arrow keys to turn it" });
  const note = h("p", { class: "muted", role: "status" });
  const open = h("button", { type: "button" }, "Turn the cloud");
  const place = h("section", { class: "cloud", "aria-label": "Point cloud" }, open, note, canvas);
  canvas.hidden = true;
  open.addEventListener("click", async () => {
    open.disabled = true;
    note.textContent = "Loading the cloud …";
    try {
      const [three, { OrbitControls }, data] = await Promise.all([import(THREE), import(CONTROLS), points(path)]);
      canvas.hidden = false;
      show(three, OrbitControls, canvas, data, reach);
      open.remove();
      note.textContent = `Blue: missing, red: extra material, both from ${reach.toPrecision(2)} mm. Drag to turn, scroll to zoom, right-drag to move.`;
    } catch (error) { // no WebGL, or nothing there
      canvas.hidden = true;
      open.disabled = false;
      note.textContent = `The cloud cannot be shown: ${error.message}`;
    }
  });
  return place;
}

function show(three, OrbitControls, canvas, data, reach) {
  const n = data.length / 4, positions = new Float32Array(3 * n), colours = new Uint8Array(3 * n);
  for (let i = 0; i < n; i++) {
    positions.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
    const part = Math.max(-1, Math.min(1, data[4 * i + 3] / reach)), end = part < 0 ? BLUE : RED;
    for (let c = 0; c < 3; c++) colours[3 * i + c] = WHITE + (end[c] - WHITE) * Math.abs(part);
  }
  const geometry = new three.BufferGeometry();
  geometry.setAttribute("position", new three.BufferAttribute(positions, 3));
  geometry.setAttribute("color", new three.BufferAttribute(colours, 3, true));
  geometry.computeBoundingSphere();
  const { center, radius } = geometry.boundingSphere;
  const size = Math.sqrt(12 * radius * radius / n); // about what a point of a surface covers
  const scene = new three.Scene();
  scene.background = new three.Color(0x20242a);
  scene.add(new three.Points(geometry, new three.PointsMaterial({ size, vertexColors: true })));
  const camera = new three.PerspectiveCamera(35, 1, radius / 50, radius * 50);
  camera.up.set(0, 0, 1);
  camera.position.copy(center).add(new three.Vector3(-1.6, -2.4, 2.2).multiplyScalar(radius));
  const renderer = new three.WebGLRenderer({ canvas, antialias: true });
  renderer.outputColorSpace = three.LinearSRGBColorSpace; // colours as they are
  const controls = new OrbitControls(camera, canvas);
  controls.target.copy(center);
  const draw = () => renderer.render(scene, camera);
  const fit = () => {
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    renderer.setPixelRatio(devicePixelRatio);
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    draw();
  };
  controls.addEventListener("change", draw);
  const turns = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  canvas.addEventListener("keydown", (event) => {
    const turn = turns[event.key];
    if (!turn) return;
    event.preventDefault();
    event.stopPropagation();
    const from = new three.Spherical().setFromVector3(camera.position.clone().sub(center).applyAxisAngle(new three.Vector3(1, 0, 0), -Math.PI / 2));
    from.theta -= turn[0] * 0.15;
    from.phi = Math.max(0.05, Math.min(Math.PI - 0.05, from.phi - turn[1] * 0.15));
    camera.position.setFromSpherical(from).applyAxisAngle(new three.Vector3(1, 0, 0), Math.PI / 2).add(center);
    controls.update();
    draw();
  });
  new ResizeObserver(fit).observe(canvas);
  controls.update();
  fit();
}
