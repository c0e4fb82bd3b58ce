"""GGUF files made for tests, block by block in plain loops, independent of the reader."""

import struct

import numpy as np

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}


def encode(kind, x):
    """Bytes of an array in a kind, and what they mean as float32."""
    flat = np.asarray(x, np.float32).reshape(-1)
    if kind == "F32":
        return flat.tobytes(), np.asarray(x, np.float32)
    if kind == "F16":
        half = flat.astype(np.float16)
        return half.tobytes(), half.astype(np.float32).reshape(x.shape)
    out, meant = b"", []
    for start in range(0, flat.size, 32):
        block = [float(v) for v in flat[start : start + 32]]
        low, high = min(block), max(block)
        if kind == "Q8_0":
            d = np.float16(max(abs(low), abs(high)) / 127)
            q = [round(v / float(d)) if d else 0 for v in block]
            out += struct.pack("<e32b", d, *q)
            meant += [float(d) * v for v in q]
            continue
        d = np.float16((high - low) / 15 if kind == "Q4_1" else max(abs(low), abs(high)) / 7)
        m = np.float16(low)
        if kind == "Q4_1":
            q = [min(15, max(0, round((v - float(m)) / float(d)))) for v in block]
            meant += [float(d) * v + float(m) for v in q]
            out += struct.pack("<ee", d, m)
        else:
            q = [min(15, max(0, round(v / float(d)) + 8)) for v in block]
            meant += [float(d) * (v - 8) for v in q]
            out += struct.pack("<e", d)
        out += bytes(q[i] + 16 * q[i + 16] for i in range(16))
    return out, np.array(meant, np.float32).reshape(x.shape)


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(v):
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + string(v)
    if all(isinstance(item, str) for item in v):
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(string, v))
    return struct.pack("<IIQ", 9, 5, len(v)) + np.array(v, "<i4").tobytes()


def gguf(metadata, tensors, version=3, alignment=32):
    """A file's bytes; tensors: name -> (kind, shape, raw bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, v in metadata.items():
        head += string(key) + value(v)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        head += string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", KINDS.get(kind, kind), len(data))
        data += raw + b"\0" * (-len(raw) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data
