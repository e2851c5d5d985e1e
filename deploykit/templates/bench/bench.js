// The page that loads and times one model: asks the server that it came from for commands, and answers them one by one.

const page = { ort: null, session: null, feeds: null, workers: 0 };

/** Threads beside the page's own are workers; they are counted where they are made, whatever was asked for. */
const PlainWorker = self.Worker;
self.Worker = class extends PlainWorker {
  constructor(...given) {
    super(...given);
    page.workers += 1;
  }
};

const commands = {
  /** Starts the runtime with a model of one node, so that this does not count as the model's; what fails here is not its fault. */
  async prepare({ threads }) {
    if (!self.crossOriginIsolated) throw new Error("the browser does not isolate the page, which threads need");
    const ort = (page.ort = await import("./ort.js"));
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = await bytes("ort-wasm-simd-threaded.wasm");
    ort.env.logLevel = "error";
    const began = performance.now();
    await (await created(await bytes("start.onnx"))).release();
    const runtimeMs = performance.now() - began;
    delete ort.env.wasm.wasmBinary;
    return { runtime_ms: runtimeMs, onnxruntime_web: ort.env.versions.web, browser: await browserVersions() };
  },

  /** Makes the inputs, and lets go of all garbage before the model. */
  async feed({ feeds }) {
    page.feeds = {};
    for (const [place, { name, dtype, shape }] of feeds.entries()) {
      const Values = ARRAYS[dtype];
      if (!Values) throw new Error(`input ${name} is ${dtype}, which no array of JavaScript holds`);
      page.feeds[name] = new page.ort.Tensor(dtype, new Values((await bytes(`feeds/${place}`)).buffer), shape);
    }
    collect();
    return {};
  },

  /** Makes the session. The time does not have the bytes' way into the page, which depends on the network. */
  async load({ model, weights }) {
    const options = { externalData: [] };
    const content = await bytes(model);
    for (const { path, file } of weights) options.externalData.push({ path, data: await bytes(file) });
    const began = performance.now();
    page.session = await created(content, options);
    return { load_ms: performance.now() - began };
  },

  async first() {
    const took = await timed();
    return { first_run_ms: took, threads: 1 + page.workers };
  },

  /** Runs until the latency no longer falls, for at least `min_runs` and `min_s`, at most `max_s`. */
  async warm({ min_runs, min_s, max_s }) {
    const latencies = [];
    const began = performance.now();
    for (;;) {
      latencies.push(await timed());
      const spent = (performance.now() - began) / 1000;
      const enough = latencies.length >= min_runs && spent >= min_s;
      if (spent >= max_s || (enough && levelled(latencies))) break;
    }
    const half = latencies.slice(Math.floor(latencies.length / 2));
    return { median_ms: median(half), levelled: levelled(latencies), timer_step_ns: timerStep() };
  },

  async measure({ runs, lead }) {
    for (let run = 0; run < lead; run += 1) await page.session.run(page.feeds);
    const latencies = [];
    for (let run = 0; run < runs; run += 1) latencies.push(Math.round((await timed()) * 1e6));
    return { latencies_ns: latencies };
  },

  /** Lets go of what is garbage. */
  async collect() {
    collect();
    return {};
  },

  /** What the model answers: numbers in one row for each output; those beyond 53 bits as texts. */
  async outputs() {
    const answers = await page.session.run(page.feeds);
    const plain = (value) => (typeof value === "bigint" ? value.toString() : value);
    return { outputs: page.session.outputNames.map((name) => Array.from(answers[name].data, plain)) };
  },
};

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
};

async function bytes(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} was not given to the page (HTTP ${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Collects garbage, where the browser was started so that a page may. */
const collect = () => self.gc?.();

const created = (content, options = {}) =>
  page.ort.InferenceSession.create(content, { executionProviders: ["wasm"], ...options });

async function timed() {
  const began = performance.now();
  await page.session.run(page.feeds);
  return performance.now() - began;
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

/** Whether the last third is no more than 3 % faster than the third before it, by medians. */
function levelled(latencies) {
  const third = Math.floor(latencies.length / 3);
  return third > 0 && median(latencies.slice(-third)) >= 0.97 * median(latencies.slice(-2 * third, -third));
}

/** The smallest time that the clock tells apart, in nanoseconds: the least of several steps. */
function timerStep() {
  let least = Infinity;
  for (let step = 0; step < 50; step += 1) {
    const began = performance.now();
    let now = began;
    while (now === began) now = performance.now();
    least = Math.min(least, now - began);
  }
  return Math.round(least * 1e6);
}

/** Names and full versions where the browser tells them, else the version of its user agent. */
async function browserVersions() {
  const facts = await navigator.userAgentData?.getHighEntropyValues(["fullVersionList"]);
  if (facts) return Object.fromEntries(facts.fullVersionList.map(({ brand, version }) => [brand, version]));
  return { [navigator.userAgent]: "" };
}

/** What a caught value says in one line; WebAssembly throws numbers too. */
function said(problem) {
  const text = problem instanceof Error ? problem.message || problem.name : `the runtime failed (${problem})`;
  return text.replace(/\s+/g, " ").trim();
}

async function answered({ do: name, ...given }) {
  try {
    return await commands[name](given);
  } catch (problem) {
    return { error: said(problem) };
  }
}

for (;;) {
  const asked = await fetch("next");
  if (asked.status === 200) {
    const answer = await answered(await asked.json());
    await fetch("answer", { method: "POST", body: JSON.stringify(answer) });
  }
}
