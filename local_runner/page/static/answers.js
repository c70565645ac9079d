// Answers of each task as elements. What a model says is text: it becomes text nodes and nothing else.

import { bar, el, fill, slicer } from "./dom.js";

const percent = (score) => `${(score * 100).toFixed(1)} %`;
const TEXT_KEYS = ["generated_text", "summary_text", "translation_text"];

export function show(task, out, inputs, answer) {
  const view = VIEWS[task] ?? json;
  try {
    fill(out, view(answer, inputs));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    fill(out, json(answer)); // parameters may change an answer's shape; its JSON is always right
  }
}

const json = (answer) => el("pre", { tabindex: 0 }, JSON.stringify(answer, null, 2));

// Text of an answer of a generating task, without a conversation or a prompt before it.
export function said(entry, prompt = "") {
  const key = TEXT_KEYS.find((name) => name in entry);
  const value = entry[key];
  if (Array.isArray(value)) return value.at(-1)?.content ?? "";
  return prompt && value.startsWith(prompt) ? value.slice(prompt.length) : value;
}

function texts(answer, inputs) {
  return answer.map((entry, index) => {
    const text = said(entry, inputs);
    const whole = entry.generated_text?.startsWith?.(inputs);
    return passage(whole ? inputs : "", text, answer.length > 1 ? `Answer ${index + 1}` : "");
  });
}

// A passage of text; what was given stands muted before what was made.
export function passage(given, text, title = "") {
  return el("div", { class: "passage" },
    title ? el("h3", {}, title) : null,
    el("p", { class: "text" }, given ? el("span", { class: "given" }, given) : null, el("span", { class: "made" }, text)));
}

export function turn(role, text, extra = []) {
  return el("div", { class: `turn ${role}` }, el("p", { class: "who" }, role), extra, el("p", { class: "text" }, text));
}

// What an answer of a conversation holds beside its text.
export function asides(entry) {
  const parts = [];
  if (entry.reasoning_content) parts.push(el("details", {}, el("summary", {}, "Reasoning"), el("p", { class: "text" }, entry.reasoning_content)));
  if (entry.tool_calls) parts.push(el("pre", { tabindex: 0 }, JSON.stringify(entry.tool_calls, null, 2)));
  return parts;
}

function spans(answer, { context }) {
  const found = [answer].flat();
  const cut = slicer(context);
  const best = found[0];
  const marked = best.answer
    ? [cut(0, best.start), el("mark", {}, cut(best.start, best.end)), cut(best.end)]
    : [context];
  return [
    el("p", { class: "lead" }, best.answer || "The context holds no answer."),
    el("p", { class: "text context", "aria-label": "Context with the answer marked" }, marked),
    el("div", { class: "bars" }, found.map((each) => bar(each.answer || "(no answer)", each.score, percent(each.score)))),
  ];
}

function labels(answer) {
  const most = Math.max(...answer.map((each) => each.score), 1e-9);
  const shares = most > 1 ? most : 1; // scores without softmax or sigmoid have no bound
  return el("div", { class: "bars" }, answer.map((each) => bar(each.label, each.score / shares, most > 1 ? each.score.toFixed(3) : percent(each.score))));
}

const kind = (entity) => (entity.entity_group ?? entity.entity).replace(/^[BIES]-/, "");

function entities(answer, text) {
  if (!answer.length) return [el("p", { class: "text" }, text), el("p", { class: "hint" }, "No entities.")];
  const kinds = [...new Set(answer.map(kind))].sort();
  const colour = (entity) => `entity colour-${kinds.indexOf(kind(entity)) % 6}`;
  const cut = slicer(text);
  const parts = [];
  let at = 0;
  for (const entity of [...answer].sort((a, b) => a.start - b.start)) {
    if (entity.start < at) continue;
    parts.push(cut(at, entity.start), el("mark", { class: colour(entity), title: percent(entity.score) },
      cut(entity.start, entity.end), el("span", { class: "tag" }, kind(entity))));
    at = entity.end;
  }
  const rows = answer.map((entity) => el("tr", {}, el("td", {}, entity.word), el("td", {}, kind(entity)), el("td", { class: "number" }, percent(entity.score))));
  return [
    el("p", { class: "text entities" }, parts, cut(at)),
    el("details", {}, el("summary", {}, `${answer.length} entities as a table`), table(["Words", "Kind", "Score"], rows)),
  ];
}

function table(heads, rows) {
  return el("div", { class: "scroll", tabindex: 0 }, el("table", {},
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, rows)));
}

function fillings(answer) {
  const masks = Array.isArray(answer[0]) ? answer : [answer];
  return masks.map((found, index) => el("div", {},
    masks.length > 1 ? el("h3", {}, `Mask ${index + 1}`) : null,
    el("p", { class: "lead" }, found[0].sequence),
    el("div", { class: "bars" }, found.map((each) => bar(each.token_str.trim() || JSON.stringify(each.token_str), each.score, percent(each.score))))));
}

// Vector of one text: as it is, or the mean of its tokens' vectors.
function vector(answer) {
  if (typeof answer === "string") {
    const bytes = Uint8Array.from(atob(answer), (letter) => letter.charCodeAt(0));
    return Array.from(new Float32Array(bytes.buffer));
  }
  if (!Array.isArray(answer[0])) return answer;
  const tokens = Array.isArray(answer[0][0]) ? answer[0] : answer;
  return tokens[0].map((_, place) => tokens.reduce((sum, token) => sum + token[place], 0) / tokens.length);
}

const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);

// Texts with the heaviest tokens of each.
function weighted(answer, inputs) {
  return answer.map((weights, index) => el("div", {},
    el("h3", {}, `${index + 1}. ${inputs[index]}`),
    el("p", {}, `${Object.keys(weights).length} tokens have a weight; the heaviest:`),
    scored(Object.entries(weights).sort(([, a], [, b]) => b - a).slice(0, 12))));
}

function similarities(answer, inputs) {
  if (answer[0] && typeof answer[0] === "object" && !Array.isArray(answer[0])) return weighted(answer, inputs);
  const vectors = answer.map(vector);
  const cosine = (a, b) => dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
  const rows = inputs.map((text, row) => el("tr", {},
    el("th", { scope: "row" }, `${row + 1}. ${text}`),
    inputs.map((_, column) => {
      const value = cosine(vectors[row], vectors[column]);
      const cell = el("td", { class: "number heat" }, value.toFixed(3));
      cell.style.setProperty("--share", `${Math.max(0, value) * 100}%`);
      return cell;
    })));
  return [
    el("p", {}, `${vectors.length} ${vectors.length === 1 ? "vector" : "vectors"} of ${vectors[0].length} numbers; cosine similarity of each text with each:`),
    table(["Text", ...inputs.map((_, index) => String(index + 1))], rows),
  ];
}

// Texts with a score each; logits have no bound, so that the longest bar is the greatest score.
function scored(pairs) {
  const greatest = Math.max(...pairs.map(([, score]) => score));
  const least = Math.min(...pairs.map(([, score]) => score), 0);
  const share = (score) => (greatest <= 1 && least >= 0 ? score : (score - least) / (greatest - least || 1));
  return el("div", { class: "bars" }, pairs.map(([text, score]) => bar(text, share(score), score.toFixed(3))));
}

const ranked = (answer, { texts }) => scored(answer.map((each) => [texts[each.index], each.score]));
const zeroShot = (answer) => scored(answer.labels.map((label, index) => [label, answer.scores[index]]));
const similar = (answer, { sentences }) => scored(answer.map((score, index) => [sentences[index], score]));

function images(answer) {
  return el("div", { class: "images" }, answer.map((each, index) => {
    const source = `data:image/png;base64,${each.generated_image}`;
    const about = [each.seed !== undefined ? `seed ${each.seed}` : "", each.nsfw_content_detected ? "marked by the model's safety checker" : ""].filter(Boolean).join(", ");
    return el("figure", {}, el("img", { src: source, alt: each.prompt }),
      el("figcaption", {}, `${about} `, el("a", { href: source, download: `image-${index + 1}.png` }, "Save")));
  }));
}

function spoken(answer) {
  const rows = (answer.chunks ?? answer.segments ?? []).map((each) => {
    const [from, to] = each.timestamp ?? [each.start, each.end];
    return el("tr", {}, el("td", { class: "number" }, `${from} – ${to} s`), el("td", {}, each.text));
  });
  return [passage("", answer.text), rows.length ? table(["Time", "Words"], rows) : null].filter(Boolean);
}

const VIEWS = {
  "text-generation": texts,
  summarization: texts,
  translation: texts,
  "question-answering": spans,
  "text-classification": labels,
  "token-classification": entities,
  "fill-mask": fillings,
  "feature-extraction": similarities,
  "sentence-embeddings": similarities,
  "sentence-similarity": similar,
  "zero-shot-classification": zeroShot,
  "text-ranking": ranked,
  "automatic-speech-recognition": spoken,
  "text-to-image": images,
};
