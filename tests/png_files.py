"""PNG files of every kind, written by the standard: bits, colour types, interlacing and all filters."""

import struct
import zlib

import numpy as np

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(path, samples, depth, color_type, *, interlaced=False, palette=b""):
    """``samples`` are (H, W, samples a pixel) whole numbers of ``depth`` bits; rows take the five filters in turn."""
    height, width, _ = samples.shape
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in PASSES if x < width and y < height] if interlaced else [samples]
    step = max(1, SAMPLES[color_type] * depth // 8)
    body = b"".join(_rows(part, depth, step) for part in parts)
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + (chunk(b"PLTE", palette) if palette else b"")
    packed = zlib.compress(body)
    for start in range(0, len(packed), 100):  # in several parts, as large pictures come
        content += chunk(b"IDAT", packed[start : start + 100])
    path.write_bytes(content + chunk(b"IEND", b""))
    return path


def _rows(part, depth, step):
    above, out = None, b""
    for number, row in enumerate(part.reshape(len(part), -1)):
        line = _packed(row, depth)
        above = np.zeros(len(line), np.uint8) if above is None else above
        out += bytes([number % 5]) + _filtered(number % 5, line, above, step).tobytes()
        above = line
    return out


def _packed(row, depth):
    if depth == 16:
        return np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
    if depth == 8:
        return row.astype(np.uint8)
    bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1))


def _filtered(kind, line, above, step):
    left = np.concatenate([np.zeros(step, np.uint8), line])[: len(line)].astype(int)
    corner = np.concatenate([np.zeros(step, np.uint8), above])[: len(line)].astype(int)
    up = above.astype(int)
    guess = left + up - corner
    a, b, c = abs(guess - left), abs(guess - up), abs(guess - corner)
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
    taken = (0, left, up, (left + up) // 2, paeth)[kind]
    return ((line.astype(int) - taken) & 0xFF).astype(np.uint8)
