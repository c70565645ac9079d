// State of the server, looked at every two seconds while the tab is seen; and its passes.

import { metrics, readiness } from "./api.js";
import { byId, el, facts, fill } from "./dom.js";

const PERIOD_MS = 2000;
let before = null;
let looking = false;

// Tell the state now and again; `onReady` is called each time a server becomes ready.
export function watch(onReady) {
  let ready = false;
  async function look() {
    if (document.hidden || looking) return;
    looking = true;
    try {
      const now = await readiness();
      pill(now.ready ? "ready" : phase(now), now.ready ? "good" : "busy");
      if (now.ready && !ready) onReady();
      ready = now.ready;
    } catch {
      pill("unreachable", "bad");
      ready = false;
    } finally {
      looking = false;
    }
  }
  look();
  setInterval(look, PERIOD_MS);
  document.addEventListener("visibilitychange", look);
}

function phase(now) {
  return now.state === "failed" ? "failed" : `${now.phase ?? now.state}, ${Math.round(now.seconds ?? 0)} s`;
}

function pill(text, kind) {
  const shown = byId("state");
  if (shown.textContent !== text) shown.textContent = text; // a screen reader hears changes alone
  shown.className = `pill ${kind}`;
}

// Numbers of /metrics; a server with keys tells them once it has one.
export async function numbers() {
  if (document.hidden) return;
  let now;
  try {
    now = { ...(await metrics()), at: performance.now() };
  } catch {
    return;
  }
  const seconds = before ? (now.at - before.at) / 1000 : 0;
  const rate = (name) => (before && seconds > 0 ? Math.max(0, now[name] - before[name]) / seconds : 0);
  const pairs = [
    ["Requests answered", whole(now.mii_azure_requests_total ?? 0)],
    ["In flight", whole(now.mii_azure_in_flight)],
    ["Waiting", whole(now.mii_azure_queue_rows)],
  ];
  if (now.mii_azure_generated_tokens_total > 0) pairs.push(["Tokens a second", rate("mii_azure_generated_tokens_total").toFixed(1)]);
  if (now.mii_azure_kv_cache_capacity_tokens > 0) pairs.push(["KV cache", `${whole(now.mii_azure_kv_cache_tokens)} of ${whole(now.mii_azure_kv_cache_capacity_tokens)} tokens`]);
  facts(byId("live"), pairs);
  before = now;
}

export function watchNumbers() {
  numbers();
  setInterval(numbers, PERIOD_MS);
}

const whole = (value) => Math.round(value ?? 0).toLocaleString("en");

export function passes(records) {
  const order = { applied: 0, dropped: 1, refused: 2 };
  const sorted = [...records].sort((a, b) => (order[a.state] ?? 3) - (order[b.state] ?? 3));
  if (!sorted.length) fill(byId("passes"), el("li", {}, el("span", { class: "hint" }, "None is for this kind of model: plain transformers answers.")));
  else fill(byId("passes"), sorted.map((each) => el("li", { class: each.state === "applied" ? "on" : "off" },
    el("span", { class: "pass" }, each.name.replaceAll("_", " ")),
    el("span", { class: "pass-state" }, each.state),
    el("span", { class: "hint" }, told(each)))));
}

function told(record) {
  const error = record.state === "applied" && record.error !== null ? `; relative error ${Number(record.error).toExponential(1)}` : "";
  return `${record.reason}${error}`;
}
