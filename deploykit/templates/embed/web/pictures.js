// Pictures as pixels, by the browser: upright, without colour management, alpha not multiplied in.

import { UnusableError } from "./classifier.js";

/**
 * The pixels of a file, RGBA.
 * @param {Blob} file
 * @param {string} name for messages
 * @returns {Promise<import("./classifier.js").Pixels & {bitmap: ImageBitmap}>} close the bitmap when it was drawn
 */
export async function decode(file, name, mostPixels) {
  if (!file.size) throw new UnusableError(`${name} is empty; choose a picture`);
  const { width, height } = await sizeOf(file, name);
  if (width * height > mostPixels) {
    throw new UnusableError(`${name} has ${width} x ${height} pixels; allowed: ${mostPixels.toLocaleString("en")}`);
  }
  let bitmap;
  try {
    const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw unreadable(name);
  }
  return { ...pixelsOf(bitmap, bitmap.width, bitmap.height), bitmap };
}

/** The size that a file's head tells, before the whole is decoded. */
async function sizeOf(file, name) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  try {
    await new Promise((done, failed) => {
      image.onload = done;
      image.onerror = failed;
      image.src = url;
    });
    if (!image.naturalWidth) throw unreadable(name);
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    throw unreadable(name);
  } finally {
    URL.revokeObjectURL(url);
  }
}

const unreadable = (name) =>
  new UnusableError(`${name} is no picture that this browser can read, is damaged, or is too large`);

/** RGBA of a bitmap, a video's frame or a canvas. */
export function pixelsOf(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new UnusableError(`${width} x ${height} pixels are too many for this browser`);
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const exact = source instanceof ImageBitmap && seesThrough(data) ? unmultiplied(source, width, height) : null;
  return { data: exact ?? data, width, height, channels: 4 };
}

function seesThrough(data) {
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) return true;
  return false;
}

/** What a 2D canvas loses of transparent pixels' colours, WebGL keeps; null where there is none, or it is too small. */
function unmultiplied(bitmap, width, height) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return failed ? null : data;
}
