// Requests to this server: the key, JSON, streams of events, and errors as sentences.

let key = "";

export const setKey = (value) => { key = value.trim(); };
export const hasKey = () => key !== "";

export class Refusal extends Error {
  constructor(status, body) {
    const told = body?.error ?? {};
    super([told.message ?? `The server answered ${status}.`, told.hint].filter(Boolean).join(" "));
    this.status = status;
    this.code = told.code ?? "";
    this.where = told.where ?? "";
  }
}

function headers(json) {
  const sent = json ? { "Content-Type": "application/json" } : {};
  return key ? { ...sent, Authorization: `Bearer ${key}` } : sent;
}

async function refused(response) {
  const text = await response.text();
  let body = null;
  try { body = JSON.parse(text); } catch { /* a proxy's own page */ }
  return new Refusal(response.status, body);
}

export async function get(path) {
  const response = await fetch(path, { headers: headers(false), cache: "no-store" });
  if (!response.ok) throw await refused(response);
  return response;
}

// State of the server, ready or not; probes need no key.
export async function readiness() {
  const response = await fetch("/readyz", { cache: "no-store" });
  const body = await response.json();
  return { ready: response.ok, ...body };
}

export async function score(body, signal) {
  const response = await fetch("/score", { method: "POST", headers: headers(true), body: JSON.stringify(body), signal });
  if (!response.ok) throw await refused(response);
  return response.json();
}

// Yield the events of a streamed answer; an error among them is thrown.
export async function* stream(body, signal) {
  const response = await fetch("/score", { method: "POST", headers: headers(true), body: JSON.stringify(body), signal });
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.startsWith("data:") ? block.slice(5).trim() : "";
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(200, event);
      yield event;
    }
  }
}

export const metadata = () => score({ mii_azure: "metadata" });
export const schema = async () => (await get("/swagger.json?version=3.1")).json();

// Prometheus' text as {name: sum of its samples}.
export async function metrics() {
  const found = {};
  for (const line of (await (await get("/metrics")).text()).split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const space = line.lastIndexOf(" ");
    const name = line.slice(0, space).split("{")[0];
    found[name] = (found[name] ?? 0) + Number(line.slice(space + 1));
  }
  return found;
}
