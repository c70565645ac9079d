// Reads bodies through the models of @azure/arm-machinelearning and writes what they make of them.
// usage: node roundtrip.mjs NODE_MODULES < [{"model": "...", "body": {...}}]
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const modules = process.argv[2];
const { createSerializer } = createRequire(join(modules, "x.js"))("@azure/core-client");
// The mappers are an ES module in a file whose name does not say so, and import nothing.
const text = readFileSync(join(modules, "@azure/arm-machinelearning/dist-esm/src/models/mappers.js"));
const mappers = await import(`data:text/javascript;base64,${text.toString("base64")}`);
const serializer = createSerializer(mappers, false);
const done = JSON.parse(readFileSync(0, "utf8")).map(({ model, body }) =>
  serializer.serialize(mappers[model], serializer.deserialize(mappers[model], body, model, { xml: {} }), model),
);
process.stdout.write(JSON.stringify(done));
