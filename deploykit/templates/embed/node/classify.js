#!/usr/bin/env node
// Pictures in, labels out: `node classify.js PICTURE…`, or `import { load } from "./classify.js"` from a program.
// Runs onnxruntime-web's WebAssembly, which lies in runtime/; nothing has to be installed for PNG, PGM and PPM.

import { readFile, realpath } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { Classifier, UnusableError, jsonOf, said } from "./classifier.js";
import { decode } from "./pictures.js";

const HERE = fileURLToPath(new URL(".", import.meta.url));

/**
 * Opens the model of a folder, by default of this file's.
 *
 *     const app = await load();
 *     await app.classify("picture.png");                       // [{label, index, probability}, …]
 *     await app.classify({ data, width, height, channels: 3 })  // or pixels: a Uint8Array, row by row
 */
export async function load(folder = HERE) {
  const read = (name) => contentOf(join(folder, name));
  const classifier = await Classifier.open(await runtime(read, folder), read);
  return new App(folder, classifier);
}

class App {
  constructor(folder, classifier) {
    Object.assign(this, { folder, classifier, facts: classifier.facts, labels: classifier.labels });
  }

  /** The most probable classes of a picture: a path, a file's bytes, or pixels. Throws UnusableError. */
  async classify(picture, top = 5) {
    return this.classifier.classify(await this.pixels(picture), top);
  }

  /** What the model answers to a picture, one number a class. Throws UnusableError. */
  async outputs(picture) {
    return this.classifier.outputs(await this.pixels(picture));
  }

  /** @returns {Promise<import("./classifier.js").Pixels>} */
  async pixels(picture) {
    if (picture instanceof Uint8Array) return decode(picture, "the picture", this.facts.most_pixels);
    if (typeof picture === "string") return decode(await contentOf(picture), picture, this.facts.most_pixels);
    return picture;
  }

  /** Whether each golden picture is answered as expected, to within the tolerance. */
  async selfTest() {
    const golden = jsonOf(await contentOf(join(this.folder, "golden", "golden.json")), "golden.json");
    const rows = await this.classifier.selfTest(golden, (file) => this.pixels(join(this.folder, "golden", file)));
    return { rows, tolerance: golden.tolerance };
  }
}

/** onnxruntime-web, told to run the WebAssembly of the folder on one thread. */
async function runtime(read, folder) {
  const wasmBinary = await read("runtime/ort-wasm-simd-threaded.wasm");
  let ort;
  try {
    ort = await import(pathToFileURL(join(folder, "runtime", "ort.js")).href);
  } catch (problem) {
    throw new UnusableError(`the runtime cannot be started: ${said(problem)}`);
  }
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasmBinary;
  ort.env.logLevel = "error";
  return ort;
}

async function contentOf(path) {
  try {
    return new Uint8Array(await readFile(path));
  } catch (problem) {
    throw new UnusableError(`cannot read ${path}: ${problem.code === "ENOENT" ? "no such file" : said(problem)}`);
  }
}

const USAGE = "usage: node classify.js [--self-test] [--top N] [--json] PICTURE…";

/** Exit code 0: done; 1: the self-test failed; 2: bad input. */
async function main() {
  let given;
  try {
    given = parseArgs({
      allowPositionals: true,
      options: { "self-test": { type: "boolean" }, top: { type: "string", default: "5" }, json: { type: "boolean" } },
    });
  } catch (problem) {
    throw new UnusableError(`${said(problem)}; ${USAGE}`);
  }
  const { values, positionals } = given;
  if (!positionals.length && !values["self-test"]) throw new UnusableError(`no picture; ${USAGE}`);
  if (!/^[1-9]\d*$/.test(values.top)) throw new UnusableError(`--top ${values.top}; allowed: 1 and more`);
  const app = await load();
  const code = values["self-test"] ? await tellSelfTest(app) : 0;
  return Math.max(code, positionals.length ? await tellAll(app, positionals, Number(values.top), values.json) : 0);
}

async function tellSelfTest(app) {
  const { rows, tolerance } = await app.selfTest();
  for (const { file, expected, found, worst, passed } of rows) {
    console.log(
      `${passed ? "passed" : "FAILED"}  ${file}: ${found}, expected ${expected}; outputs differ by ${worst.toPrecision(3)}`,
    );
  }
  const passed = rows.filter((row) => row.passed).length;
  console.log(`self-test: ${passed} of ${rows.length} passed (tolerance ${tolerance})`);
  return passed === rows.length ? 0 : 1;
}

/** One unreadable picture does not keep the others from being classified. */
async function tellAll(app, pictures, top, asJson) {
  let code = 0;
  const found = [];
  for (const picture of pictures) {
    try {
      const began = performance.now();
      const answers = await app.classify(picture, top);
      const ms = performance.now() - began;
      found.push({ picture, ms, answers });
      const best = answers.map(({ label, probability }) => `${label} ${(100 * probability).toFixed(1)}%`).join(", ");
      if (!asJson) console.log(`${picture}: ${best} (${ms.toFixed(1)} ms)`);
    } catch (problem) {
      if (!(problem instanceof UnusableError)) throw problem;
      console.error(`error: ${problem.message}`);
      code = 2;
    }
  }
  if (asJson) console.log(JSON.stringify(found));
  return code;
}

if (process.argv[1] && (await realpath(process.argv[1])) === (await realpath(fileURLToPath(import.meta.url)))) {
  try {
    process.exitCode = await main();
  } catch (problem) {
    if (!(problem instanceof UnusableError)) throw problem;
    console.error(`error: ${problem.message}`);
    process.exitCode = 2;
  }
}
