// A pad to draw a digit on, white on black, by finger, mouse or keyboard; what is drawn is centred as in MNIST.

import { pixelsOf } from "./pictures.js";

const PEN = 20; // pixels of 280: as thick as MNIST's strokes
const STEP = 10;
// LeCun et al.: digits fit into 20 × 20 of 28 × 28 pixels, their centre of mass in the middle. Here ten times as many.
const BOX = 200;

/** @param {HTMLCanvasElement} pad @param {() => void} changed called after every stroke and while one is drawn */
export function drawingPad(pad, changed) {
  const context = pad.getContext("2d", { willReadFrequently: true });
  const pen = { x: pad.width / 2, y: pad.height / 2, down: false };

  function clear() {
    context.fillStyle = "#000";
    context.fillRect(0, 0, pad.width, pad.height);
    changed();
  }

  function line(x, y) {
    context.strokeStyle = "#fff";
    context.lineWidth = PEN;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(pen.x, pen.y);
    context.lineTo(x, y);
    context.stroke();
    changed();
  }

  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    [pen.x, pen.y] = place(event);
    pen.down = true;
    line(pen.x, pen.y);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!pen.down || !pad.hasPointerCapture(event.pointerId)) return;
    const [x, y] = place(event);
    line(x, y);
    [pen.x, pen.y] = [x, y];
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (pen.down = false));
  pad.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === " ") pen.down = !pen.down;
    else if (!dx && !dy) return;
    event.preventDefault();
    const x = Math.min(pad.width, Math.max(0, pen.x + dx * STEP));
    const y = Math.min(pad.height, Math.max(0, pen.y + dy * STEP));
    if (pen.down) line(x, y);
    [pen.x, pen.y] = [x, y];
  });
  clear();
  return { clear, pixels: () => centred(pad) };
}

/** The drawing in MNIST's place and size; null where nothing is drawn. */
function centred(pad) {
  const { width, height } = pad;
  const { data } = pixelsOf(pad, width, height);
  const ink = { left: width, right: -1, top: height, bottom: -1, sum: 0, x: 0, y: 0 };
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const value = data[4 * (y * width + x)];
      if (!value) continue;
      ink.left = Math.min(ink.left, x);
      ink.right = Math.max(ink.right, x);
      ink.top = Math.min(ink.top, y);
      ink.bottom = Math.max(ink.bottom, y);
      ink.sum += value;
      ink.x += value * (x + 0.5);
      ink.y += value * (y + 0.5);
    }
  }
  if (!ink.sum) return null;
  const factor = BOX / Math.max(ink.right - ink.left + 1, ink.bottom - ink.top + 1);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.setTransform(factor, 0, 0, factor, width / 2 - (factor * ink.x) / ink.sum, height / 2 - (factor * ink.y) / ink.sum);
  context.drawImage(pad, 0, 0);
  return pixelsOf(canvas, width, height);
}
