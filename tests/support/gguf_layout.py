"""A GGUF file taken apart: where each field lies, for tests that edit one."""
import struct

import numpy as np


class Layout:
    """Where each field of a GGUF file lies."""
    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, data):
        self.data, self.at = data, 8
        self.keys, self.tensors = {}, {}
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        for _ in range(n_keys):
            place = {"start": self.at}
            name = self.string()
            place["type"] = self.at
            type_ = self.number("I")
            place["value"] = self.at
            self.value(type_, place)
            self.keys[name] = place | {"end": self.at}
        for _ in range(n_tensors):
            place = {"start": self.at}
            name = self.string()
            place["n_dims"] = self.at
            count = self.number("I")
            place["dims"] = self.at
            self.at += 8 * count
            place["type"] = self.at
            self.at += 4
            place["offset"] = self.at
            place["data"] = self.number("Q")
            self.tensors[name] = place | {"end": self.at}
        self.header = self.at
        for place in self.tensors.values():
            place["data"] += (self.at + 31) // 32 * 32

    def number(self, kind):
        value, = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def string(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def value(self, type_, place):
        if type_ == 8:
            self.string()
        elif type_ == 9:
            kind = self.number("I")
            place["count"], place["first"] = self.at, self.at + 8
            for _ in range(self.number("Q")):
                self.value(kind, {})
        else:
            self.at += self.SIZES[type_]


def take_apart(data):
    """([bytes of each key], [[name, dims, type, bytes of its data]]) of a whole file, to be changed and written again."""
    places = Layout(data)
    keys = [bytes(data[p["start"]:p["end"]]) for p in places.keys.values()]
    tensors, ends = [], sorted([p["data"] for p in places.tensors.values()] + [len(data)])
    for name, p in places.tensors.items():
        count, = struct.unpack_from("<I", data, p["n_dims"])
        dims = struct.unpack_from(f"<{count}Q", data, p["dims"])
        type_, = struct.unpack_from("<I", data, p["type"])
        tensors.append([name, list(dims), type_, bytes(data[p["data"]:next(e for e in ends if e > p["data"])])])
    return keys, tensors


def put_together(keys, tensors):
    """The file of them; the data of a tensor may be followed by padding."""
    table, body = b"", b""
    for name, dims, type_, data in tensors:
        text = name.encode()
        table += struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, len(body))
        body += data + b"\0" * (-len(data) % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + table
    return header + b"\0" * (-len(header) % 32) + body


def scales_times(data, name, n_bytes, factor):
    """Of a Q4_K tensor of that many bytes: every block's scale and minimum (f16) times the factor, rounded to f16."""
    at = Layout(data).tensors[name]["data"]
    blocks = np.frombuffer(data, np.uint8, n_bytes, at).reshape(-1, 144).copy()
    scales = blocks[:, :4].copy().view(np.float16)
    blocks[:, :4] = (scales.astype(np.float64) * factor).astype(np.float16).view(np.uint8)
    return bytes(data[:at]) + blocks.tobytes() + bytes(data[at + n_bytes:])
