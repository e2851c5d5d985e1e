// The page: a picture, the camera or a drawing in; labels with probabilities, the latency and the self-test out.

import { Classifier, UnusableError, jsonOf, said } from "./classifier.js";
import { drawingPad } from "./drawing.js";
import { decode, pixelsOf } from "./pictures.js";

const TOP = 5;
const PREVIEW = 340; // pixels of the longest side
const element = (id) => document.getElementById(id);
const page = { classifier: null, camera: null, pad: null, waiting: null, busy: false };

// ---- what is told ----

function tell(problem) {
  const message = problem instanceof UnusableError ? problem.message : problem ? `Something went wrong: ${said(problem)}` : "";
  element("problem").textContent = message;
  element("problem").hidden = !message;
}

function loading(text, share) {
  element("status").textContent = text;
  element("progress").hidden = share === undefined;
  if (share !== undefined) element("progress").value = share;
}

function showAnswers(answers, ms) {
  const [best] = answers;
  element("status").hidden = true;
  element("best").hidden = element("latency").hidden = false;
  const text = `${best.label}, ${percent(best.probability)}`;
  if (element("best").textContent !== text) element("best").textContent = text;
  element("bars").replaceChildren(...answers.map(barOf));
  element("latency").textContent = `${ms.toFixed(1)} ms in this browser, one thread`;
}

function barOf({ label, probability }) {
  const [item, fill, name, share] = ["li", "i", "span", "span"].map((tag) => document.createElement(tag));
  fill.style.width = `${100 * probability}%`;
  name.textContent = label;
  share.textContent = percent(probability);
  share.className = "share";
  item.append(fill, name, share);
  return item;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function forget() {
  element("best").hidden = element("latency").hidden = true;
  element("bars").replaceChildren();
  element("status").hidden = false;
}

// ---- starting ----

async function content(name) {
  let answer;
  try {
    answer = await fetch(name);
  } catch {
    throw new UnusableError(`${name} cannot be loaded: the web server does not answer`);
  }
  if (!answer.ok) throw new UnusableError(`${name} is missing (HTTP ${answer.status}); copy the whole folder again`);
  return answer;
}

async function bytes(name, progress = () => {}) {
  const answer = await content(name);
  const total = Number(answer.headers.get("Content-Length"));
  const reader = answer.body.getReader();
  const parts = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
    if (total) progress(Math.min(1, length / total));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function runtime() {
  const name = "runtime/ort-wasm-simd-threaded.wasm";
  const wasmBinary = await bytes(name, (share) => loading("Loading the runtime …", share));
  let ort;
  try {
    ort = await import("./runtime/ort.js");
  } catch {
    throw new UnusableError("runtime/ort.js is missing or damaged; copy the whole folder again");
  }
  ort.env.wasm.numThreads = 1; // more need a server that isolates the page
  ort.env.wasm.wasmBinary = wasmBinary;
  ort.env.logLevel = "error";
  return ort;
}

async function start() {
  loading("Loading the runtime …", 0);
  const ort = await runtime();
  loading("Loading the model …");
  page.classifier = await Classifier.open(ort, bytes);
  const { facts, labels } = page.classifier;
  document.title = element("title").textContent = facts.title;
  element("about").textContent =
    `Tells ${labels.length} classes apart: ${labels.slice(0, 6).join(", ")}${labels.length > 6 ? " and others" : ""}. ` +
    "Your pictures stay on this device: the model runs in this page.";
  element("footer").textContent =
    `${facts.model}, ${facts.precision}, ${facts.model_bytes.toLocaleString("en")} bytes, SHA-256 ${facts.model_sha256}; ` +
    `${facts.runtime.package} ${facts.runtime.version}; made by ${facts.made_by}`;
  loading("Running the self-test …");
  await selfTest();
  if (facts.digits) setUpDrawing();
  element("file").disabled = false;
  loading(facts.digits ? "Draw a digit, or choose a picture." : "Choose a picture, or start the camera.");
  document.body.dataset.state = "ready";
}

async function selfTest() {
  const golden = jsonOf(await bytes("golden/golden.json"), "golden.json");
  const show = async (file) => {
    const pixels = await decode(await (await content(`golden/${file}`)).blob(), file, page.classifier.facts.most_pixels);
    pixels.bitmap.close();
    return pixels;
  };
  const rows = await page.classifier.selfTest(golden, show);
  const passed = rows.filter((row) => row.passed).length;
  element("verdict").textContent = `${passed} of ${rows.length} passed`;
  element("verdict").classList.add(passed === rows.length ? "passed" : "failed");
  element("tests").replaceChildren(
    ...rows.map((row) => {
      const item = document.createElement("li");
      item.className = row.passed ? "passed" : "failed";
      item.textContent =
        `${row.file}: ${row.found}${row.found === row.expected ? "" : `, expected ${row.expected}`}; ` +
        `outputs differ by ${row.worst.toPrecision(2)}, allowed ${golden.tolerance}`;
      return item;
    }),
  );
  if (passed < rows.length) {
    throw new UnusableError("The self-test failed: this browser does not give the model's answers; see below.");
  }
}

// ---- classifying ----

/** Classifies the latest of what is shown; what came while the model was busy is passed over. */
async function classify(pixels) {
  page.waiting = pixels;
  if (page.busy || !page.classifier) return;
  page.busy = true;
  try {
    while (page.waiting) {
      const next = page.waiting;
      page.waiting = null;
      const began = performance.now();
      const answers = await page.classifier.classify(next, TOP);
      showAnswers(answers, performance.now() - began);
      tell(null);
    }
  } catch (problem) {
    forget();
    tell(problem);
  } finally {
    page.busy = false;
  }
}

async function classifyFile(file) {
  if (!page.classifier) return;
  setMode("picture");
  try {
    const pixels = await decode(file, file.name || "the picture", page.classifier.facts.most_pixels);
    preview(pixels.bitmap);
    pixels.bitmap.close();
    await classify(pixels);
  } catch (problem) {
    element("preview").hidden = true;
    forget();
    tell(problem);
  }
}

function preview(bitmap) {
  const canvas = element("preview");
  const factor = Math.min(PREVIEW / bitmap.width, PREVIEW / bitmap.height);
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = factor < 1;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
}

// ---- where pictures come from ----

function setMode(mode) {
  for (const name of ["picture", "camera", "draw"]) {
    element(`${name}-panel`).hidden = name !== mode;
    element(`mode-${name}`).setAttribute("aria-pressed", String(name === mode));
  }
  if (mode !== "camera") stopCamera();
}

function setUpFiles() {
  element("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (file) classifyFile(file);
  });
  const drag = (on) => (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", on);
  };
  addEventListener("dragover", drag(true));
  addEventListener("dragleave", drag(false));
  addEventListener("drop", (event) => {
    drag(false)(event);
    take(event.dataTransfer, "What was dropped is no file; drop a picture from a folder.");
  });
  addEventListener("paste", (event) => take(event.clipboardData, "What was pasted is no picture."));
}

function take(transfer, otherwise) {
  const [file] = transfer.files;
  if (file) classifyFile(file);
  else tell(new UnusableError(otherwise));
}

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new UnusableError("The camera needs a page from https or localhost; choose a picture instead.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (problem) {
    throw new UnusableError(`The camera cannot be used: ${said(problem)}; choose a picture instead.`);
  }
  page.camera = stream;
  element("camera-toggle").textContent = "Stop the camera";
  const video = element("video");
  video.srcObject = stream;
  await video.play();
  while (page.camera === stream) {
    if (video.videoWidth) await classify(pixelsOf(video, video.videoWidth, video.videoHeight));
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  page.camera?.getTracks().forEach((track) => track.stop());
  page.camera = null;
  element("video").srcObject = null;
  element("camera-toggle").textContent = "Start the camera";
}

function setUpDrawing() {
  element("mode-draw").hidden = false;
  page.pad = drawingPad(element("pad"), () => {
    const pixels = page.pad?.pixels();
    if (pixels) classify(pixels);
    else forget();
  });
  element("clear").addEventListener("click", () => page.pad.clear());
  setMode("draw");
}

function setUp() {
  for (const name of ["picture", "camera", "draw"]) {
    element(`mode-${name}`).addEventListener("click", () => setMode(name));
  }
  element("camera-toggle").addEventListener("click", () => {
    if (page.camera) stopCamera();
    else if (page.classifier) startCamera().catch(tell);
  });
  setUpFiles();
}

setUp();
start().catch((problem) => {
  tell(problem);
  loading("It cannot start.");
  document.body.dataset.state = "failed";
});
