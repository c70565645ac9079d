// What each task asks for: its fields, how they become `inputs`, and which parameters come first.
//
// `of` is the way back, from a sample's inputs to the fields. A task that is not here gets its inputs as JSON.

const text = (label, rows = 4) => [{ name: "text", label, rows }];
const one = { inputs: (given) => given.text, of: (inputs) => ({ text: asText(inputs) }) };
const byLine = (written) => written.split("\n").filter((line) => line.trim());
const lines = { inputs: (given) => byLine(given.text), of: (inputs) => ({ text: [inputs].flat().join("\n") }) };
const GENERATION = ["max_new_tokens", "temperature", "top_p", "seed"];
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

export const TASKS = {
  "text-generation": { ...one, fields: text("Text to continue"), first: GENERATION, openai: "completions" },
  conversational: {
    chat: true,
    fields: [
      { name: "text", label: "Message", rows: 3, sends: true },
      { name: "system", label: "System prompt", rows: 1, optional: true },
    ],
    of: (inputs) => ({ text: inputs.findLast((message) => message.role === "user")?.content ?? "", system: inputs.find((message) => message.role === "system")?.content ?? "" }),
    inputs: (given, history = []) => [
      ...(given.system ? [{ role: "system", content: given.system }] : []),
      ...history,
      { role: "user", content: given.text },
    ],
    first: GENERATION,
    presets: { max_new_tokens: undefined }, // not the sample's few, but as many as fit
    openai: "chat",
  },
  "question-answering": {
    fields: [{ name: "question", label: "Question", rows: 1 }, { name: "context", label: "Context", rows: 6 }],
    inputs: ({ question, context }) => ({ question, context }),
    of: ({ question, context }) => ({ question, context }),
    first: ["top_k"],
  },
  "text-classification": {
    fields: [{ name: "text", label: "Text", rows: 4 }, { name: "pair", label: "Second text, for models of pairs", rows: 1, optional: true }],
    inputs: ({ text: first, pair }) => (pair ? { text: first, text_pair: pair } : first),
    of: (inputs) => (typeof inputs === "string" ? { text: inputs } : { text: inputs.text, pair: inputs.text_pair }),
    first: ["top_k", "function_to_apply"],
    presets: { top_k: 5 },
  },
  "token-classification": { ...one, fields: text("Text"), first: ["aggregation_strategy"], presets: { aggregation_strategy: "simple" } },
  "fill-mask": { ...one, fields: text("Text with masks", 3), mask: "[MASK]", first: ["top_k", "targets"] },
  "feature-extraction": { ...lines, fields: text("Texts, one a line", 5), first: ["pooling", "normalize"], presets: { pooling: "mean" }, openai: "embeddings" },
  "sentence-embeddings": { ...lines, fields: text("Texts, one a line", 5), first: ["normalize", "prompt_name", "input_type", "sparse_keys"], openai: "embeddings" },
  "sentence-similarity": {
    fields: [{ name: "source", label: "Source sentence", rows: 1 }, { name: "text", label: "Sentences, one a line", rows: 5 }],
    inputs: (given) => ({ source_sentence: given.source, sentences: byLine(given.text) }),
    of: (inputs) => ({ source: inputs.source_sentence, text: inputs.sentences.join("\n") }),
    first: ["normalize", "prompt_name"],
  },
  "zero-shot-classification": { ...one, fields: text("Text"), first: ["candidate_labels", "hypothesis_template", "multi_label"] },
  "text-ranking": {
    fields: [{ name: "query", label: "Query", rows: 1 }, { name: "text", label: "Texts to rank, one a line", rows: 5 }],
    inputs: (given) => ({ query: given.query, texts: byLine(given.text) }),
    of: (inputs) => ({ query: inputs.query, text: inputs.texts.join("\n") }),
    first: ["top_k"],
  },
  summarization: { ...one, fields: text("Text to shorten", 8), first: GENERATION, openai: "completions" },
  translation: { ...one, fields: text("Text to translate", 5), first: ["src_lang", "tgt_lang", "max_new_tokens"], openai: "completions" },
  "automatic-speech-recognition": {
    ...one,
    fields: [{ name: "text", label: "Sound: a file, or its bytes in base64", rows: 3, file: "audio/*,.wav,.flac,.ogg,.mp3" }],
    first: ["language", "task", "return_timestamps"],
  },
  "text-to-image": {
    fields: [{ name: "text", label: "What to draw", rows: 3 }],
    inputs: (given) => given.text,
    of: (inputs) => ({ text: typeof inputs === "string" ? inputs : inputs.prompt }),
    first: ["negative_prompt", "num_inference_steps", "guidance_scale", "seed"],
  },
};

const OTHER = {
  fields: [{ name: "text", label: "Inputs, as JSON", rows: 8 }],
  inputs: (given) => {
    try {
      return JSON.parse(given.text);
    } catch {
      throw new Error("Inputs: this is not JSON.");
    }
  },
  of: (inputs) => ({ text: JSON.stringify(inputs, null, 2) }),
  first: [],
};

export const taskOf = (name) => TASKS[name] ?? OTHER;
