// Pixels in, labels out: what the page and the Node module share. Knows neither files nor pictures' formats.

/** A picture, a file or a setting that cannot be used; its message is one line for a person. */
export class UnusableError extends Error {}

/**
 * Pixels of one picture, upright, row by row from the top left.
 * @typedef {{data: Uint8Array | Uint8ClampedArray, width: number, height: number, channels: 1 | 2 | 3 | 4}} Pixels
 * channels: grey, grey and alpha, RGB, or RGBA; alpha is dropped.
 */

export class Classifier {
  /**
   * @param {object} ort onnxruntime-web's module
   * @param {object} facts model.json
   * @param {string[]} labels names of the classes
   * @param {object} session of the model
   */
  constructor(ort, facts, labels, session) {
    Object.assign(this, { ort, facts, labels, session });
  }

  /**
   * Opens the model of an app's folder.
   * @param {object} ort onnxruntime-web's module, told where its WebAssembly is
   * @param {(name: string) => Promise<Uint8Array>} read gives a file of the folder, or throws UnusableError
   */
  static async open(ort, read) {
    const facts = jsonOf(await read("model.json"), "model.json");
    const labels = textOf(await read("labels.txt")).trimEnd().split("\n");
    if (labels.length !== facts.classes) {
      throw new UnusableError(`labels.txt names ${labels.length} classes instead of ${facts.classes}; copy it again`);
    }
    const model = await read(facts.model);
    if (model.length !== facts.model_bytes) {
      throw new UnusableError(
        `${facts.model} has ${model.length} bytes instead of ${facts.model_bytes}: cut short or replaced; copy it again`,
      );
    }
    return new Classifier(ort, facts, labels, await started(ort, facts, model));
  }

  /**
   * The most probable classes, best first.
   * @param {Pixels} pixels
   * @returns {Promise<{label: string, index: number, probability: number}[]>}
   */
  async classify(pixels, top = 5) {
    const chances = this.probabilities(await this.outputs(pixels));
    const order = Array.from(chances.keys()).sort((a, b) => chances[b] - chances[a] || a - b);
    return order.slice(0, top).map((index) => ({ label: this.labels[index], index, probability: chances[index] }));
  }

  /** What the model answers, one number a class. @param {Pixels} pixels @returns {Promise<Float32Array>} */
  async outputs(pixels) {
    const { name, channels, size } = this.facts.input;
    const { width, height } = pixels;
    if (width * height > this.facts.most_pixels) {
      throw new UnusableError(`the picture has ${width} x ${height} pixels; allowed: ${this.facts.most_pixels}`);
    }
    if (size && (size[0] !== height || size[1] !== width)) {
      throw new UnusableError(`the picture has ${height} x ${width} pixels; this model takes ${size[0]} x ${size[1]} only`);
    }
    const input = new this.ort.Tensor("uint8", recoloured(pixels, channels), [1, height, width, channels]);
    try {
      const answers = await this.session.run({ [name]: input }, [this.facts.output]);
      return Float32Array.from(answers[this.facts.output].data);
    } catch (problem) {
      throw new UnusableError(`the model cannot take this picture of ${width} x ${height} pixels: ${said(problem)}`);
    }
  }

  /** Softmax, unless the model gives probabilities already. @returns {Float64Array} */
  probabilities(outputs) {
    if (this.facts.probabilities) return Float64Array.from(outputs);
    const largest = outputs.reduce((most, value) => Math.max(most, value), -Infinity);
    const powers = Float64Array.from(outputs, (value) => Math.exp(value - largest));
    const sum = powers.reduce((total, value) => total + value, 0);
    return powers.map((value) => value / sum);
  }

  /**
   * Compares the answers to the golden pictures.
   * @param {object} golden golden/golden.json
   * @param {(file: string) => Promise<Pixels>} show gives the pixels of a golden picture
   */
  async selfTest(golden, show) {
    const rows = [];
    for (const { file, label, outputs } of golden.pictures) {
      const got = await this.outputs(await show(file));
      if (got.length !== outputs.length) {
        throw new UnusableError(`the model gives ${got.length} outputs; golden.json expects ${outputs.length}`);
      }
      const worst = got.reduce((most, value, index) => Math.max(most, distance(value, outputs[index])), 0);
      const found = this.labels[got.indexOf(got.reduce((a, b) => Math.max(a, b)))];
      rows.push({ file, expected: label, found, worst, passed: found === label && worst <= golden.tolerance });
    }
    return rows;
  }
}

const distance = (a, b) => (Number.isFinite(a) ? Math.abs(a - b) : Infinity);

async function started(ort, facts, model) {
  try {
    return await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  } catch (problem) {
    throw new UnusableError(`${facts.model} cannot be started: ${said(problem)}`);
  }
}

/**
 * The pixels with 1 (grey) or 3 (RGB) channels, without alpha. Colour becomes grey by the ITU-R 601 luma in 16-bit
 * fixed point, as Pillow has it.
 */
export function recoloured({ data, width, height, channels }, depth) {
  const count = width * height;
  if (data.length !== count * channels) {
    throw new UnusableError(`${data.length} bytes for ${width} x ${height} pixels of ${channels} channels`);
  }
  if (channels === depth) return new Uint8Array(data.buffer, data.byteOffset, data.length);
  const out = new Uint8Array(count * depth);
  const grey = channels < 3;
  for (let at = 0, from = 0; at < count; at += 1, from += channels) {
    if (depth === 1) {
      out[at] = grey
        ? data[from]
        : (19595 * data[from] + 38470 * data[from + 1] + 7471 * data[from + 2] + 0x8000) >>> 16;
    } else {
      out[3 * at] = data[from];
      out[3 * at + 1] = data[grey ? from : from + 1];
      out[3 * at + 2] = data[grey ? from : from + 2];
    }
  }
  return out;
}

export function jsonOf(content, name) {
  try {
    return JSON.parse(textOf(content));
  } catch (problem) {
    throw new UnusableError(`${name} is damaged: ${said(problem)}; copy it again`);
  }
}

const textOf = (content) => new TextDecoder().decode(content);

/** What a thrown value says, on one line; the runtime also throws numbers. */
export function said(problem) {
  const text = problem instanceof Error ? problem.message : `code ${problem}`;
  return text.replace(/\s+/g, " ").trim().slice(0, 300);
}
