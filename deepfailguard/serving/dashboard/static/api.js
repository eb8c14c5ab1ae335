// Talking to the server: keys, time limits, and its errors as text.

const KEYS = { user: "deepfailguard.key", admin: "deepfailguard.admin-key" };

/** What went wrong: `status` of the answer, 0 where there was none. */
export class ServerError extends Error {
  constructor(message, status = 0, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }

  /** Whether a key is missing, or another one is wanted. */
  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export const keyOf = (whose) => sessionStorage.getItem(KEYS[whose]) ?? "";

/** Keep a key as long as this tab is open; an empty one is forgotten. */
export function keepKey(whose, key) {
  if (key) sessionStorage.setItem(KEYS[whose], key);
  else sessionStorage.removeItem(KEYS[whose]);
}

/** The server's answer: {data, date}; date is its clock in ms, null if it does not tell. Throws ServerError. */
export async function request(path, { method = "GET", body, json, whose = "user", patience = 4000 } = {}) {
  const headers = {};
  if (keyOf(whose)) headers.Authorization = bearer(keyOf(whose));
  if (json !== undefined) headers["Content-Type"] = "application/json";
  const content = json === undefined ? body : JSON.stringify(json);
  const signal = AbortSignal.timeout(patience);
  let response, text;
  try {
    response = await fetch(path, { method, headers, body: content, signal, cache: "no-store", credentials: "same-origin" });
    text = await response.text();
  } catch (error) {
    throw new ServerError(unreachable(error, patience));
  }
  const data = parsed(text);
  if (!response.ok) throw new ServerError(told(response, data, text), response.status, data);
  if (data === null) throw new ServerError(`it sent no JSON, but: ${text.slice(0, 200)}`, response.status);
  return { data, date: Date.parse(response.headers.get("Date") ?? "") || null };
}

function bearer(key) {
  if (/^[\x21-\x7e]+$/.test(key)) return `Bearer ${key}`;
  throw new ServerError("a key has no blanks and only plain characters; this one has others", 401);
}

function unreachable(error, patience) {
  if (error.name === "TimeoutError") return `no answer within ${patience / 1000} s`;
  return "it cannot be reached (stopped, or the network is gone)";
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function told(response, data, text) {
  const what = typeof data?.error === "string" ? data.error : text.slice(0, 200);
  const later = response.headers.get("Retry-After");
  const numbered = `${response.status}${response.statusText ? ` ${response.statusText}` : ""}`;
  return `${what || "the server gave no reason"} (${numbered})${later ? `; try again in ${later} s` : ""}`;
}
