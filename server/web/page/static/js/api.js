// The server's HTTP API: JSON, pictures and files, with the key of this tab if one is needed.

const KEY = "refdiff-key"; // in sessionStorage: gone with the tab, and never sent by itself

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail.message ?? `the server answered ${status}`);
    this.status = status;
    this.detail = detail;
  }
}

let askForKey = async () => null;

/** How a person is asked for a key, or to sign in at an address; resolves to the key, or null. */
export function onKeyNeeded(ask) {
  let asking = null; // many requests may fail at once, one dialog is enough
  askForKey = (why, signInAt) => (asking ??= ask(why, signInAt).finally(() => { asking = null; }));
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  drop: () => sessionStorage.removeItem(KEY),
};

async function send(method, path, { query, json, form, signal } = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  for (;;) {
    const headers = {};
    const given = key.get();
    if (given) headers["X-API-Key"] = given;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(url, { method, headers, body: json !== undefined ? JSON.stringify(json) : form, signal, cache: "no-cache" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "the server does not answer; is refdiff serve still running?" });
    }
    if (answer.ok) return answer;
    const detail = await answer.json().then((body) => body.error ?? {}, () => ({}));
    if (answer.status === 401) {
      if (given) key.drop();
      const entered = path === LOGIN ? null : await askForKey(detail.message, detail.sign_in);
      if (entered) {
        key.set(entered);
        continue;
      }
    }
    throw new ApiError(answer.status, detail);
  }
}

const LOGIN = "/login";
export const signIn = async (token) => { await send("POST", LOGIN, { json: { token } }); };
/** Resolves to where the identity provider ends its own session, or null. */
export const signOut = async () => {
  const answer = await send("POST", "/logout");
  return answer.status === 204 ? null : (await answer.json()).provider;
};
export const get = async (path, query, signal) => (await send("GET", path, { query, signal })).json();
export const post = async (path, json) => (await send("POST", path, { json })).json();
export const put = async (path, json) => (await send("PUT", path, { json })).json();
export const patch = async (path, json) => (await send("PATCH", path, { json })).json();
export const remove = async (path) => {
  const answer = await send("DELETE", path);
  return answer.status === 204 ? null : answer.json();
};
export const upload = async (path, form) => (await send("POST", path, { form })).json();

const pictures = new Map(); // path -> object URL, the newest last
const KEPT = 60;

/** An address for <img>, which cannot send a key itself. */
export async function picture(path, query) {
  const name = path + JSON.stringify(query ?? {});
  let url = pictures.get(name);
  if (url) {
    pictures.delete(name);
  } else {
    url = URL.createObjectURL(await (await send("GET", path, { query })).blob());
  }
  pictures.set(name, url);
  for (const [old, address] of pictures) {
    if (pictures.size <= KEPT) break;
    pictures.delete(old);
    URL.revokeObjectURL(address);
  }
  return url;
}

/** What a part measures, pixel by pixel: {width, height, values: Float32Array}. */
export async function values(path) {
  const answer = await send("GET", path);
  const [width, height] = ["X-Width", "X-Height"].map((name) => Number(answer.headers.get(name)));
  const view = new DataView(await answer.arrayBuffer());
  return { width, height, values: Float32Array.from({ length: width * height }, (_, i) => view.getFloat32(4 * i, true)) };
}

/** A point cloud: x, y, z and deviation in mm, one after the other. */
export async function points(path) {
  const view = new DataView(await (await send("GET", path)).arrayBuffer());
  return Float32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Hand a file of the server to the person. */
export async function download(path, query, filename) {
  const url = URL.createObjectURL(await (await send("GET", path, { query })).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = filename;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
