// The page: who serves here, a form for its task, and what came back. Nothing is stored; a reload forgets all.

import * as api from "./api.js";
import { asides, passage, said, show, turn } from "./answers.js";
import { LANGUAGES, code } from "./code.js";
import { byId, el, facts, fill } from "./dom.js";
import { Form } from "./form.js";
import { numbers, passes, watch, watchNumbers } from "./live.js";
import { described } from "./schema.js";
import { taskOf } from "./tasks.js";

const state = { served: null, task: null, form: null, language: LANGUAGES[0], history: [], sent: null, running: null, counting: false };

async function load() {
  try {
    const [served, document] = await Promise.all([api.metadata(), api.schema()]);
    begin(served, described(document));
  } catch (error) {
    if (error.status === 401) askForKey();
    else notice(error.message);
  }
}

function begin(served, about) {
  notice("");
  byId("door").hidden = true;
  byId("name").textContent = served.name;
  document.title = `${served.name}: ${served.task}`;
  byId("about").textContent = `${served.task} · ${served.model} · ${served.precision} on ${served.device}`;
  passes(served.passes ?? []);
  if (!state.form) build(served, about);
  if (!state.counting) watchNumbers();
  state.counting = true;
}

function build(served, about) {
  state.served = served;
  state.task = taskOf(served.task);
  state.form = new Form(byId("form"), state.task, about, { asked: ask, changed: showCode, stopped: () => state.running?.abort() });
  const choices = LANGUAGES.map((language) => el("label", {},
    el("input", { type: "radio", name: "language", value: language, checked: language === state.language, onchange: () => { state.language = language; showCode(); } }),
    el("span", {}, language)));
  byId("languages").append(...choices);
  showCode();
}

function askForKey() {
  const again = api.hasKey();
  byId("door").hidden = false;
  byId("about").textContent = "A key is needed to ask this server";
  if (again) byId("door-why").textContent = "That key is not one of this server's. Try another.";
  byId("key").focus();
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function showCode() {
  let shown;
  try {
    // Before the next message is written, the last request is the one to show.
    const request = (state.history.length && !state.form.fields.text.value && state.sent) || state.form.request(state.history);
    shown = code(state.language, { request, origin: location.origin, keyed: api.hasKey(), interfaceOf: state.task.openai, model: state.served.name });
  } catch (error) {
    shown = error.message;
  }
  byId("code").textContent = shown;
}

function complain(error) {
  const shown = byId("error");
  shown.replaceChildren(error.code ? el("strong", {}, error.code, ": ") : "", error.message, error.where ? ` (at ${error.where})` : "");
  shown.hidden = false;
  state.form.point(error.where ?? "");
  if (error.status === 401) askForKey();
}

async function ask() {
  if (state.running) return;
  byId("error").hidden = true;
  let request;
  try {
    request = state.form.request(state.history);
  } catch (error) {
    complain(error);
    return;
  }
  state.sent = request;
  state.running = new AbortController();
  state.form.busy(true);
  byId("out").setAttribute("aria-busy", "true");
  const clock = { began: performance.now(), first: 0, last: 0, arrivals: 0, ended: 0 };
  try {
    const reply = await answered(request, clock);
    clock.ended = performance.now();
    finish(request, reply, clock);
  } catch (error) {
    byId("out").querySelector(":scope > .hint")?.remove();
    if (error.name === "AbortError") facts(byId("times"), [["Stopped after", seconds(performance.now() - clock.began)]]);
    else complain(error instanceof TypeError ? new Error("The server cannot be reached, or went away.") : error);
  } finally {
    state.running = null;
    state.form.busy(false);
    byId("out").setAttribute("aria-busy", "false");
    numbers();
  }
}

// Reply to a request with its usage; pieces of a stream are shown as they come.
async function answered(request, clock) {
  const { signal } = state.running;
  const sent = state.form.streams ? { ...request, options: { usage: true } } : request;
  if (!request.stream) {
    waiting(request);
    const reply = await api.score(sent, signal);
    return state.form.streams ? reply : { answer: reply };
  }
  const places = waiting(request);
  let last = {};
  for await (const event of api.stream(sent, signal)) {
    const now = performance.now();
    clock.first ||= now;
    if (event.token && now - clock.last > 1) {
      clock.last = now;
      clock.arrivals += 1;
    }
    if (event.token) places(event.token.index ?? 0).append(event.token.text);
    else last = event;
  }
  return last;
}

// Show what is waited for; return where the text of answer N goes.
function waiting(request) {
  const out = byId("out");
  const made = [];
  fill(out, state.task.chat ? conversation(request.inputs) : el("p", { class: "hint" }, "Waiting for the answer."));
  return (index) => {
    if (!made.length) out.querySelector(":scope > .hint")?.remove();
    while (made.length <= index) {
      const shown = state.task.chat ? turn("assistant", "") : passage(given(request), "");
      out.append(shown);
      made.push(shown.querySelector(".made") ?? shown.querySelector(".text"));
    }
    return made[index];
  };
}

const given = (request) => (state.served.task === "text-generation" ? request.inputs : "");
const conversation = (messages) => messages.map((message) => turn(message.role, message.content));

function finish(request, reply, clock) {
  const out = byId("out");
  if (state.task.chat) {
    fill(out, conversation(request.inputs), reply.answer.map((entry) => turn("assistant", said(entry), asides(entry))));
    remember(request, reply.answer[0]);
  } else {
    show(state.served.task, out, request.inputs, reply.answer);
  }
  facts(byId("times"), times(reply.usage, clock));
  byId("raw").hidden = false;
  byId("raw-text").textContent = JSON.stringify(reply.answer, (name, value) => (name === "generated_image" ? `${value.slice(0, 40)}…` : value), 2);
}

function remember(request, entry) {
  const system = request.inputs[0]?.role === "system" ? 1 : 0;
  state.history = [...request.inputs.slice(system), { role: "assistant", content: said(entry) }];
  state.form.fields.text.value = "";
  const again = el("button", { type: "button", class: "quiet", onclick: forget }, "New conversation");
  byId("out").append(again);
  state.form.fields.text.focus();
  showCode();
}

function forget() {
  state.history = [];
  fill(byId("out"), el("p", { class: "hint" }, "Nothing asked yet."));
  facts(byId("times"), []);
  state.form.fields.text.focus();
  showCode();
}

function times(usage, clock) {
  const whole = clock.ended - clock.began;
  const pairs = [["Time", seconds(whole)]];
  if (clock.first) pairs.push(["First token", seconds(clock.first - clock.began)]);
  if (!usage) return pairs;
  const made = usage.completion_tokens;
  // From the first token to the last where they came one by one, else over the whole request.
  const rate = clock.arrivals > 3 ? (made - 1) / (clock.last - clock.first) : made / whole;
  return [...pairs, ["Tokens a second", (rate * 1000).toFixed(1)], ["Tokens", `${usage.prompt_tokens} in, ${made} out`], ["Ended by", [...new Set(usage.finish_reasons)].join(", ")]];
}

const seconds = (milliseconds) => (milliseconds < 1000 ? `${milliseconds.toFixed(0)} ms` : `${(milliseconds / 1000).toFixed(2)} s`);

byId("door").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setKey(byId("key").value);
  byId("key").value = "";
  load();
});

byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(byId("code")); // without TLS a browser gives no clipboard to other hosts' pages
    byId("copied").textContent = "Selected: press Ctrl+C.";
  }
});

watch(load);
