// Speaks to the server: two calls, and every way in which they fail told apart by `kind`.

const TIMEOUT_MS = 15_000;
const KEY_ITEM = "sketchray-key";

/** What went wrong. `kind`: key, large, refused, busy, broken or gone; busy and gone are worth another try. */
export class ApiError extends Error {
  constructor(kind, message, retryAfterS = null) {
    super(message);
    this.kind = kind;
    this.retryAfterS = retryAfterS;
  }
}

// A browser that forbids storage throws on access: the key then lasts as long as the page.
let key = "";
try {
  key = sessionStorage.getItem(KEY_ITEM) ?? "";
} catch {}

/** Keeps the key for this tab. Returns false for one that cannot stand in a header. */
export function setKey(text) {
  if (!/^[\x21-\x7e]+$/.test(text)) return false;
  key = text;
  try {
    sessionStorage.setItem(KEY_ITEM, key);
  } catch {}
  return true;
}

/** Returns `{predictions, version, ms}` for a simplified drawing. */
export async function classify(drawing, topK, signal) {
  const start = performance.now();
  const { body, headers } = await call("v1/classify", { drawing, top_k: topK }, signal);
  const predictions = Array.isArray(body?.predictions) ? body.predictions : [];
  return { predictions, version: headers.get("X-Model-Version"), ms: performance.now() - start };
}

/** Returns what the server tells about its model; every field may be missing. */
export async function describeModel() {
  const { body } = await call("v1/model");
  return body ?? {};
}

// The address is relative to the page, so that the whole works behind a path prefix.
async function call(path, data, signal) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (data) headers["Content-Type"] = "application/json";
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), TIMEOUT_MS);
  signal?.addEventListener("abort", () => patience.abort());
  try {
    const response = await fetch(path, {
      method: data ? "POST" : "GET",
      headers,
      body: data && JSON.stringify(data),
      signal: patience.signal,
      cache: "no-store",
    });
    if (!response.ok) throw await failure(response);
    return { body: await response.json(), headers: response.headers };
  } catch (error) {
    if (error instanceof ApiError) throw error;
    if (signal?.aborted) throw error;
    if (error instanceof SyntaxError) throw new ApiError("broken", "The server sent something that is not an answer.");
    throw new ApiError("gone", "The server cannot be reached.");
  } finally {
    clearTimeout(timer);
  }
}

async function failure(response) {
  const { status } = response;
  const said = await detail(response);
  if (status === 401 || status === 403) {
    return new ApiError("key", key ? "The server did not accept this key." : "This server asks for a key.");
  }
  if (status === 413) return new ApiError("large", "This drawing is too big to send. Undo a little, or start again.");
  if (status === 422) return new ApiError("refused", said ? `The server refused it: ${said}` : "The server refused it.");
  if (status === 503 || status === 429) {
    return new ApiError("busy", "Many people are drawing just now.", retryAfterS(response));
  }
  if (status === 408 || status === 504) return new ApiError("busy", "The server was too slow to answer.");
  if (status === 502) return new ApiError("gone", "The server is not running.");
  return new ApiError("broken", `The server failed (${status})${said ? `: ${said}` : "."}`);
}

/** FastAPI's `detail` is a text, or a list of `{loc, msg}`. */
async function detail(response) {
  try {
    const { detail: said } = await response.json();
    if (typeof said === "string") return said;
    if (!Array.isArray(said)) return "";
    return said.map(({ loc = [], msg = "" }) => `${loc.join(".")} ${msg}`.trim()).join("; ");
  } catch {
    return "";
  }
}

/** `Retry-After` is a number of seconds or a date. */
function retryAfterS(response) {
  const header = response.headers.get("Retry-After");
  if (!header) return null;
  const seconds = Number.isNaN(Number(header)) ? (Date.parse(header) - Date.now()) / 1000 : Number(header);
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}
