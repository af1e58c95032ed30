// Builds plugin.js into plugin.wasm: `npm install && npm run build`.
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { componentize } from "@bytecodealliance/componentize-js";

const here = import.meta.dirname;
// One folder holds this world and, as its dependency, the contract.
const wit = await mkdtemp(join(tmpdir(), "wit-"));
await cp(join(here, "wit"), wit, { recursive: true });
await cp(join(here, "../../wit"), join(wit, "deps/policy"), { recursive: true });

const { component, imports } = await componentize({
  sourcePath: join(here, "plugin.js"),
  witPath: wit,
  worldName: "select-adapter-only",
  // Plugins have no WASI: neither clocks nor files nor sockets.
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile(join(here, "plugin.wasm"), component);
await rm(wit, { recursive: true });
console.log(`plugin.wasm: ${component.length} bytes, imports ${JSON.stringify(imports)}`);
