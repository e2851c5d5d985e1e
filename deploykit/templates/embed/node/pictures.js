// Pictures as pixels. PNG, PGM and PPM are read here; JPEG and others by the package sharp, where it is installed.

import { inflateSync } from "node:zlib";
import { UnusableError, said } from "./classifier.js";

/** What a file begins with, by format. */
const BEGINNINGS = [
  ["PNG", [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ["JPEG", [0xff, 0xd8, 0xff]],
  ["GIF", [0x47, 0x49, 0x46, 0x38]],
  ["WEBP", [0x52, 0x49, 0x46, 0x46]],
  ["TIFF", [0x49, 0x49, 0x2a, 0x00]],
  ["TIFF", [0x4d, 0x4d, 0x00, 0x2a]],
  ["PGM", [0x50, 0x35]],
  ["PPM", [0x50, 0x36]],
];

/**
 * The pixels of a picture's file, turned upright as its EXIF data say.
 * @param {Uint8Array} content
 * @param {string} name for messages
 * @returns {Promise<import("./classifier.js").Pixels>}
 */
export async function decode(content, name, mostPixels) {
  if (!content.length) throw new UnusableError(`${name} is empty; give a picture`);
  const format = BEGINNINGS.find(([, bytes]) => bytes.every((byte, at) => content[at] === byte))?.[0];
  if (!format) throw new UnusableError(`${name} is no picture of a known format: PNG, PGM, PPM, JPEG, GIF, WEBP, TIFF`);
  try {
    if (format === "PNG") return png(content, mostPixels);
    if (format === "PGM" || format === "PPM") return pnm(content, mostPixels);
    return await bySharp(content, format, mostPixels);
  } catch (problem) {
    throw new UnusableError(`${name} is not a readable picture: ${said(problem)}`);
  }
}

async function bySharp(content, format, mostPixels) {
  let sharp;
  try {
    sharp = (await import("sharp")).default;
  } catch {
    throw new Error(`${format} needs the package sharp; run npm install in this folder, or give PNG, PGM or PPM`);
  }
  const options = { failOn: "truncated", ignoreIcc: true, limitInputPixels: mostPixels };
  const { data, info } = await sharp(content, options).rotate().raw().toBuffer({ resolveWithObject: true });
  return { data, width: info.width, height: info.height, channels: info.channels };
}

function pnm(content, mostPixels) {
  const head = /^P([56])(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s/.exec(
    Buffer.from(content.subarray(0, 1024)).toString("latin1"),
  );
  if (!head) throw new Error("its head is damaged");
  const [width, height, most, channels] = [Number(head[2]), Number(head[3]), Number(head[4]), head[1] === "5" ? 1 : 3];
  if (most !== 255) throw new Error(`its largest value is ${most}; allowed: 255`);
  checkSize(width, height, mostPixels);
  const data = content.subarray(head[0].length, head[0].length + width * height * channels);
  if (data.length !== width * height * channels) throw new Error("the file is cut short");
  return { data, width, height, channels };
}

function checkSize(width, height, mostPixels) {
  if (!width || !height) throw new Error("it has no pixels");
  if (width * height > mostPixels) throw new Error(`${width} x ${height} pixels; allowed: ${mostPixels}`);
}

// PNG, third edition (W3C). Samples a pixel by colour type: grey, -, RGB, palette, grey and alpha, -, RGBA.
const SAMPLES = [1, 0, 3, 1, 2, 0, 4];
const WHOLE = [[0, 0, 1, 1]];
// Adam7, section 8.1: first column, first row, column step, row step of each pass.
const PASSES = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
];

function png(content, mostPixels) {
  const { head, palette, exif, packed } = chunks(content);
  const [width, height] = [head.getUint32(0), head.getUint32(4)];
  const [depth, type, interlaced] = [head.getUint8(8), head.getUint8(9), head.getUint8(12)];
  checkSize(width, height, mostPixels);
  const samples = SAMPLES[type];
  if (!samples || ![1, 2, 4, 8, 16].includes(depth)) throw new Error(`colour type ${type} with ${depth} bits`);
  const passes = (interlaced ? PASSES : WHOLE)
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, columns: Math.ceil((width - x) / dx), rows: Math.ceil((height - y) / dy) }))
    .filter(({ columns, rows }) => columns > 0 && rows > 0)
    .map((pass) => ({ ...pass, bytes: Math.ceil((pass.columns * samples * depth) / 8) }));
  const length = passes.reduce((sum, { rows, bytes }) => sum + rows * (bytes + 1), 0);
  const raw = inflateSync(packed, { maxOutputLength: length + 1 });
  if (raw.length < length) throw new Error("the file is cut short");

  const channels = type === 3 ? 3 : samples;
  const data = new Uint8Array(width * height * channels);
  const step = Math.max(1, (samples * depth) >> 3);
  let at = 0;
  for (const { x, y, dx, dy, columns, rows, bytes } of passes) {
    let above = new Uint8Array(bytes);
    for (let row = 0; row < rows; row += 1, at += bytes + 1) {
      const line = unfiltered(raw[at], raw.subarray(at + 1, at + 1 + bytes), above, step);
      const values = eightBit(line, columns * samples, depth, type);
      for (let column = 0; column < columns; column += 1) {
        const to = ((y + row * dy) * width + x + column * dx) * channels;
        for (let channel = 0; channel < channels; channel += 1) {
          data[to + channel] = type === 3 ? palette[3 * values[column] + channel] : values[column * samples + channel];
        }
      }
      above = line;
    }
  }
  return turned({ data, width, height, channels }, orientation(exif));
}

function chunks(content) {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const found = { palette: new Uint8Array(0), parts: [] };
  for (let at = 8; at + 12 <= content.length; ) {
    const length = view.getUint32(at);
    const kind = Buffer.from(content.subarray(at + 4, at + 8)).toString("latin1");
    if (at + 12 + length > content.length) throw new Error("the file is cut short");
    const body = content.subarray(at + 8, at + 8 + length);
    if (kind === "IHDR") found.head = new DataView(body.buffer, body.byteOffset, body.byteLength);
    if (kind === "PLTE") found.palette = body;
    if (kind === "eXIf") found.exif = body;
    if (kind === "IDAT") found.parts.push(body);
    if (kind === "IEND") break;
    at += 12 + length;
  }
  if (!found.head || found.head.byteLength !== 13 || !found.parts.length) throw new Error("the file is cut short");
  return { ...found, packed: Buffer.concat(found.parts) };
}

/** One row without its filter (section 9). `step` is the bytes of a whole pixel. */
function unfiltered(filter, line, above, step) {
  const out = Uint8Array.from(line);
  for (let at = 0; at < out.length; at += 1) {
    const left = at >= step ? out[at - step] : 0;
    const up = above[at];
    if (filter === 1) out[at] += left;
    else if (filter === 2) out[at] += up;
    else if (filter === 3) out[at] += (left + up) >> 1;
    else if (filter === 4) out[at] += paeth(left, up, at >= step ? above[at - step] : 0);
    else if (filter) throw new Error(`unknown filter ${filter}`);
  }
  return out;
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

/** The samples of a row as bytes: fewer bits are stretched (not indices), of 16 the upper byte; 16-bit grey is rounded. */
function eightBit(line, count, depth, type) {
  if (depth === 8) return line;
  if (depth === 16) {
    const wide = (at) => line[2 * at] * 256 + line[2 * at + 1];
    return Uint8Array.from({ length: count }, (_, at) =>
      type === 0 ? Math.floor((wide(at) * 255 + 32767) / 65535) : line[2 * at],
    );
  }
  const most = (1 << depth) - 1;
  const factor = type === 3 ? 1 : 255 / most;
  return Uint8Array.from({ length: count }, (_, at) => {
    const bit = at * depth;
    return ((line[bit >> 3] >> (8 - depth - (bit & 7))) & most) * factor;
  });
}

/** EXIF's orientation, 1 to 8; 1 where it says none (EXIF 2.32, tag 0x0112 of the first directory). */
function orientation(exif) {
  if (!exif || exif.length < 14) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = view.getUint16(0) === 0x4949;
  const first = view.getUint32(4, little);
  if (first + 2 > exif.length) return 1;
  const count = view.getUint16(first, little);
  for (let at = first + 2; at + 12 <= exif.length && at < first + 2 + 12 * count; at += 12) {
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return 1;
}

/** Upright: pixel (x, y) of the result is taken from where the orientation has it. */
function turned(pixels, value) {
  const { data, width: w, height: h, channels } = pixels;
  const from = {
    2: (x, y) => [w - 1 - x, y],
    3: (x, y) => [w - 1 - x, h - 1 - y],
    4: (x, y) => [x, h - 1 - y],
    5: (x, y) => [y, x],
    6: (x, y) => [y, h - 1 - x],
    7: (x, y) => [w - 1 - y, h - 1 - x],
    8: (x, y) => [w - 1 - y, x],
  }[value];
  if (!from) return pixels;
  const [width, height] = value > 4 ? [h, w] : [w, h];
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const [column, row] = from(x, y);
      const begin = (row * w + column) * channels;
      out.set(data.subarray(begin, begin + channels), (y * width + x) * channels);
    }
  }
  return { data: out, width, height, channels };
}
