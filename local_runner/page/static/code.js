// The request as code that runs as it stands: curl, Python's standard library, and the openai client.

const RENAMED = { max_new_tokens: "max_tokens", num_return_sequences: "n" };
const OPENAI = ["max_tokens", "n", "temperature", "top_p", "seed", "stop", "logit_bias", "presence_penalty", "frequency_penalty", "encoding_format", "dimensions"];

// A JSON value as Python writes it.
export function python(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const parts = Array.isArray(value)
    ? value.map((each) => python(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const flat = `${open}${parts.join(", ")}${close}`;
  return flat.length + indent.length < 88 ? flat : `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}`;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(request, origin, keyed) {
  const key = keyed ? ' \\\n  -H "Authorization: Bearer $API_KEY"' : "";
  const flags = request.stream ? "-sN" : "-s";
  return `curl ${flags} ${origin}/score \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${shell(JSON.stringify(request))}`;
}

function standardLibrary(request, origin, keyed) {
  const key = keyed ? ', "Authorization": "Bearer " + os.environ["API_KEY"]' : "";
  const head = `import json\n${keyed ? "import os\n" : ""}import urllib.request\n\nbody = ${python(request)}
request = urllib.request.Request(
    "${origin}/score",
    json.dumps(body).encode(),
    {"Content-Type": "application/json"${key}},
)
with urllib.request.urlopen(request) as reply:\n`;
  if (!request.stream) return `${head}    print(json.load(reply))`;
  return `${head}    for line in reply:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            print(event.get("token", {}).get("text", ""), end="", flush=True)`;
}

function openai(request, origin, keyed, interfaceOf, model) {
  if (!interfaceOf) return "# OpenAI's interface has no such task; use curl or Python.";
  const named = {};
  const extra = {};
  for (const [name, value] of Object.entries(request.parameters ?? {})) {
    const theirs = RENAMED[name] ?? name;
    if (name !== "return_full_text") (OPENAI.includes(theirs) ? named : extra)[theirs] = value;
  }
  const lead = { chat: ["messages", "chat.completions"], completions: ["prompt", "completions"], embeddings: ["input", "embeddings"] }[interfaceOf];
  const given = { model, [lead[0]]: request.inputs, ...named };
  if (interfaceOf === "embeddings") given.encoding_format ??= "float";
  if (request.stream) given.stream = true;
  if (Object.keys(extra).length) given.extra_body = extra;
  const call = Object.entries(given).map(([name, value]) => `    ${name}=${python(value, "    ")},\n`).join("");
  const key = keyed ? 'os.environ["API_KEY"]' : '"none"';
  const head = `${keyed ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key=${key})
answer = client.${lead[1]}.create(\n${call})\n`;
  return head + shown(interfaceOf, request.stream);
}

function shown(interfaceOf, stream) {
  if (interfaceOf === "embeddings") return "print([len(each.embedding) for each in answer.data])";
  const chat = interfaceOf === "chat";
  if (stream) return `for event in answer:\n    print(event.choices[0].${chat ? "delta.content" : "text"} or "", end="", flush=True)`;
  return `print(answer.choices[0].${chat ? "message.content" : "text"})`;
}

export const LANGUAGES = ["curl", "Python", "openai"];

export function code(language, { request, origin, keyed, interfaceOf, model }) {
  if (language === "curl") return curl(request, origin, keyed);
  if (language === "Python") return standardLibrary(request, origin, keyed);
  return openai(request, origin, keyed, interfaceOf, model);
}
