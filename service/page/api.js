// The service's interface as this page uses it. Every path is relative to the page's own, so that
// it works below a proxy's prefix too.

const base = new URL(".", document.baseURI);
const KEY = "stablesr-key";

export class Problem extends Error {
  // A refusal: RFC 9457 problem details, or what can be said of an answer that holds none.
  constructor(status, body, retryAfter) {
    super(body.detail || body.title || `The service answered ${status}.`);
    this.status = status;
    this.fields = body.errors || [];
    this.retryAfter = retryAfter;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) || "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("Authorization", `Bearer ${key()}`);
  const answer = await fetch(at(path), { ...options, headers });
  if (answer.ok) return answer;
  const type = answer.headers.get("Content-Type") || "";
  const body = type.includes("json") ? await answer.json() : {};
  throw new Problem(answer.status, body, Number(answer.headers.get("Retry-After")) || 0);
}

function at(path) {
  // The service's own links are absolute paths that hold the prefix already.
  return new URL(path, base);
}

export async function models() {
  return (await call("models")).json();
}

export async function submit(file, fields) {
  const form = new FormData();
  form.append("image", file, file.name || "pasted.png");
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const headers = { "Idempotency-Key": crypto.randomUUID?.() || `${Date.now()}-${Math.random()}` };
  return (await call("upscale", { method: "POST", body: form, headers })).json();
}

export async function list(path = "jobs?limit=20") {
  return (await call(path)).json();
}

export async function job(id) {
  return (await call(`jobs/${id}`)).json();
}

export async function cancel(id) {
  return (await call(`jobs/${id}`, { method: "DELETE" })).json();
}

export async function result(url) {
  // Not by a link: the page may fetch from its own server only.
  return (await call(`${url}?direct=true`)).blob();
}

// Follows one job until it has ended: `onJob` is called with what is new. Its events come over
// fetch, because EventSource cannot send a key; a broken stream is taken up where it broke.
export async function follow(id, onJob, signal) {
  let last = "";
  let wait = 1000;
  for (;;) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const answer = await call(`jobs/${id}/events`, { headers, signal });
      if (answer.status === 204) return onJob(await job(id));
      for await (const event of events(answer.body)) {
        wait = 1000;
        if (event.id) last = event.id;
        const data = JSON.parse(event.data);
        onJob(event.name === "progress" ? { id, state: "processing", progress: data } : data);
        if (event.name === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && [401, 404].includes(error.status)) throw error;
      wait = Math.max(wait, (error.retryAfter || 0) * 1000);
    }
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(wait * 2, 15000);
    if (signal.aborted) return;
  }
}

// The events of a text/event-stream body: HTML standard, section 9.2.6.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = { name: "message", data: "", id: "" };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split(/\r\n|\n|\r/);
    text = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data) yield event;
        event = { name: "message", data: "", id: "" };
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const content = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") event.name = content;
      else if (field === "data") event.data += (event.data && "\n") + content;
      else if (field === "id") event.id = content;
    }
  }
}
