// Parameters as the running bundle's own OpenAPI document describes them: one labelled control each.

import { el } from "./dom.js";

const UNSET = "";

// What the document says of a request: its parameters by name, its sample, and whether it can stream.
export function described(document) {
  const schemas = document.components?.schemas ?? {};
  const input = schemas.ServiceInput ?? {};
  const canonical = (input.anyOf ?? [input])[0] ?? {};
  const properties = canonical.properties ?? {};
  return {
    parameters: resolved(properties.parameters ?? {}, schemas).properties ?? {},
    sample: input.examples?.[0] ?? { inputs: "" },
    streams: "stream" in properties,
  };
}

function resolved(schema, schemas) {
  const name = schema.$ref?.split("/").pop();
  return name ? (schemas[name] ?? {}) : schema;
}

// Kind of control for a parameter: number, choice, lines, text or json.
export function kindOf(schema) {
  const kinds = (schema.anyOf ?? [schema]).filter((each) => each.type !== "null");
  const choices = kinds.flatMap((each) => each.enum ?? ("const" in each ? [each.const] : each.type === "boolean" ? [true, false] : []));
  const covered = kinds.every((each) => each.enum || "const" in each || each.type === "boolean");
  if (choices.length && covered) return { kind: "choice", choices };
  if (kinds.every((each) => each.type === "integer" || each.type === "number")) {
    const [{ minimum, maximum, exclusiveMinimum, type }] = kinds;
    return { kind: "number", step: type === "integer" ? "1" : "any", min: minimum ?? exclusiveMinimum, max: maximum };
  }
  const texts = kinds.some((each) => each.type === "array" && each.items?.type === "string");
  if (texts) return { kind: "lines" };
  return { kind: kinds.every((each) => each.type === "string") ? "text" : "json" };
}

// A control for a parameter: its element, and `read`, whose value is undefined where the default stands.
export function control(name, schema, preset) {
  const id = `p-${name}`;
  const kind = kindOf(schema);
  const shown = JSON.stringify(schema.default ?? null);
  const common = { id, name, "aria-describedby": `${id}-hint` };
  const input = made(kind, common, shown);
  if (preset !== undefined) input.value = kind.kind === "lines" ? [preset].flat().join("\n") : kind.kind === "text" ? preset : JSON.stringify(preset);
  const element = el("div", { class: "field" },
    el("label", { for: id }, name),
    input,
    el("p", { id: `${id}-hint`, class: "hint" }, schema.description ?? ""));
  return { name, element, input, read: () => read(name, kind, input) };
}

function made(kind, common, shown) {
  const hint = shown === "null" ? "" : `default ${shown}`;
  if (kind.kind === "choice") {
    const options = kind.choices.map((value) => el("option", { value: JSON.stringify(value) }, String(value)));
    return el("select", common, el("option", { value: UNSET }, shown === "null" ? "not set" : `default (${shown.replaceAll('"', "")})`), options);
  }
  if (kind.kind === "number") {
    const mode = kind.step === "1" ? "numeric" : "decimal";
    return el("input", { ...common, type: "number", step: kind.step, min: kind.min, max: kind.max, placeholder: hint || "not set", inputmode: mode });
  }
  if (kind.kind === "lines") return el("textarea", { ...common, rows: 1, placeholder: "one a line" });
  if (kind.kind === "json") return el("textarea", { ...common, rows: 2, placeholder: "JSON", spellcheck: "false" });
  return el("input", { ...common, type: "text", placeholder: hint || "not set" });
}

function read(name, kind, input) {
  if (input.validity?.badInput) throw new Error(`${name}: this is no number.`);
  const text = input.value;
  if (text.trim() === "") return undefined;
  if (kind.kind === "lines") return text.split("\n").filter((line) => line !== "");
  if (kind.kind === "text") return text;
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name}: this is not JSON.`);
  }
}
