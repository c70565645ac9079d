// The form of the task that is served: its fields, its parameters, and the request that they make.

import { el, fill } from "./dom.js";
import { control } from "./schema.js";

export class Form {
  // `asked` is called when the form is sent, `changed` after every change, `stopped` to end what runs.
  constructor(place, task, described, { asked, changed, stopped }) {
    this.task = task;
    this.streams = described.streams;
    this.fields = Object.fromEntries(task.fields.map((field) => [field.name, area(field)]));
    this.controls = controls(task, described);
    this.stream = el("input", { type: "checkbox", id: "stream", checked: true });
    this.send = el("button", { type: "submit", id: "send" }, "Send");
    this.stop = el("button", { type: "button", id: "stop", class: "quiet", hidden: true, onclick: stopped }, "Stop");
    fill(place, this.layout(described));
    this.set(task.of(described.sample.inputs));
    place.addEventListener("submit", (event) => { event.preventDefault(); asked(); });
    place.addEventListener("input", changed);
    place.addEventListener("keydown", (event) => this.key(event, place));
  }

  layout(described) {
    const { task } = this;
    const first = this.controls.filter((each) => isFirst(task, described, each.name));
    const rest = this.controls.filter((each) => !first.includes(each));
    const more = el("details", { class: "more" }, el("summary", {}, `More parameters (${rest.length})`),
      el("div", { class: "grid" }, rest.map((each) => each.element)));
    return [
      ...task.fields.map((field) => el("div", { class: "field" },
        el("label", { for: `f-${field.name}` }, field.label, field.optional ? el("span", { class: "hint" }, " optional") : null),
        field.file ? this.picker(field) : null,
        field.file ? this.player(field) : null,
        this.fields[field.name])),
      task.mask ? el("button", { type: "button", class: "quiet", onclick: () => this.insert(task.mask) }, `Insert ${task.mask}`) : null,
      el("div", { class: "row" }, this.send, this.stop, this.streams ? el("label", { class: "check", for: "stream" }, this.stream, "Stream") : null),
      first.length ? el("div", { class: "grid" }, first.map((each) => each.element)) : null,
      rest.length ? more : null,
    ];
  }

  set(values) {
    for (const [name, field] of Object.entries(this.fields)) field.value = values[name] ?? "";
  }

  values() {
    return Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value]));
  }

  // The request as every other client would send it; throws where a field is not what it has to be.
  request(history) {
    const parameters = {};
    for (const each of this.controls) {
      const value = each.read();
      if (value !== undefined) parameters[each.name] = value;
    }
    const made = { inputs: this.task.inputs(this.values(), history) };
    if (Object.keys(parameters).length) made.parameters = parameters;
    if (this.streams && this.stream.checked) made.stream = true;
    return made;
  }

  busy(busy) {
    this.send.disabled = busy;
    this.stop.hidden = !busy;
  }

  // Point at the parameter or field that an error names.
  point(where) {
    for (const each of this.controls) each.input.removeAttribute("aria-invalid");
    const name = where.startsWith("parameters.") ? where.split(".")[1] : "";
    const found = this.controls.find((each) => each.name === name);
    if (!found) return;
    found.input.setAttribute("aria-invalid", "true");
    const hidden = found.element.closest("details");
    if (hidden) hidden.open = true;
    found.input.focus();
  }

  // A choice of a file, whose bytes become the field's text in base64.
  picker(field) {
    const reads = (event) => {
      const reader = new FileReader();
      reader.onload = () => {
        const target = this.fields[field.name];
        target.value = reader.result.slice(reader.result.indexOf(",") + 1);
        target.dispatchEvent(new Event("input", { bubbles: true }));
      };
      if (event.target.files[0]) reader.readAsDataURL(event.target.files[0]);
    };
    return el("input", { type: "file", accept: field.file, "aria-label": `File: ${field.label}`, onchange: reads });
  }

  // The sound that the field's text is, to listen to; browsers tell its kind from its bytes.
  player(field) {
    const made = el("audio", { controls: true, preload: "metadata", "aria-label": "The sound" });
    const target = this.fields[field.name];
    const load = () => { made.src = `data:audio/wav;base64,${target.value.trim()}`; };
    target.addEventListener("input", load);
    setTimeout(load); // once the sample is filled in
    return made;
  }

  insert(mask) {
    const field = this.fields.text;
    field.setRangeText(mask, field.selectionStart, field.selectionEnd, "end");
    field.focus();
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  key(event, place) {
    const sends = event.target.dataset.sends && !event.shiftKey;
    if (event.key !== "Enter" || event.isComposing || !(sends || event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (!this.send.disabled) place.requestSubmit();
  }
}

function area(field) {
  return el("textarea", { id: `f-${field.name}`, rows: field.rows, class: field.file ? "bytes" : null, "data-sends": field.sends ? "yes" : null, "aria-required": field.optional ? null : "true" });
}

function controls(task, described) {
  const presets = { ...described.sample.parameters, ...task.presets };
  const order = (name) => (isFirst(task, described, name) ? task.first.indexOf(name) : 99);
  return Object.entries(described.parameters)
    .map(([name, schema]) => control(name, schema, presets[name]))
    .sort((a, b) => order(a.name) - order(b.name));
}

const isFirst = (task, described, name) => task.first.includes(name) || name in (described.sample.parameters ?? {});
