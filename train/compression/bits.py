"""Numbers as bytes, as few as can be: packed to their width, or Huffman coded where that is shorter.

A Huffman code takes at least one bit for each of its symbols, so where there are few different numbers several of them
make one symbol.
"""

import struct
import zlib

import numpy as np

HEAD = struct.Struct("<BBI")  # numbers in a symbol (0: packed), the largest number, the stream's length in bytes
MOST = 8  # numbers in a symbol
AT_ONCE = 1 << 20  # numbers packed at a time; a multiple of 8, so that each part ends with a byte


def pack(values: np.ndarray, width: int) -> bytes:
    """(N,) numbers from 0 to 2^width - 1 -> ceil(N width / 8) bytes, lowest bit first.

    Raises `ValueError` for a number that does not fit.
    """
    flat = values.astype(np.int64, copy=False)
    if len(flat) and (flat.min() < 0 or flat.max() >> width):
        raise ValueError(f"a number does not fit in {width} bits")
    places = np.arange(width)
    parts = (flat[i : i + AT_ONCE] for i in range(0, len(flat), AT_ONCE))
    return b"".join(
        np.packbits((part[:, None] >> places & 1).astype(np.uint8), bitorder="little").tobytes() for part in parts
    )


def unpack(data: bytes, width: int, count: int) -> np.ndarray:
    """What `pack` packed, (count,) int64. Raises `ValueError` where the bytes are not so many."""
    if len(data) != -(-count * width // 8):
        raise ValueError(f"{len(data)} bytes are not {count} numbers of {width} bits")
    values = np.empty(count, dtype=np.int64)
    places = 1 << np.arange(width, dtype=np.int64)
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        piece = np.frombuffer(data, np.uint8, -(-size * width // 8), start * width // 8)
        bits = np.unpackbits(piece, count=size * width, bitorder="little").reshape(size, width)
        values[start : start + size] = bits @ places
    return values


def huffman(symbols: bytes) -> bytes:
    """A Huffman code of bytes (RFC 1951 without matches)."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(symbols) + coder.flush()


def together(values: np.ndarray, kinds: int, count: int) -> bytes:
    """(N,) numbers below `kinds` -> ceil(N / count) bytes, `count` numbers in each; kinds^count is at most 256."""
    filled = np.pad(values, (0, -len(values) % count)).reshape(-1, count)
    return (filled @ kinds ** np.arange(count)).astype(np.uint8).tobytes()


def apart(symbols: bytes, kinds: int, count: int) -> np.ndarray:
    """What `together` put together, and the zeros that filled the last byte."""
    return (np.frombuffer(symbols, np.uint8).astype(np.int64)[:, None] // kinds ** np.arange(count) % kinds).flatten()


class Writer:
    """Streams one after the other; `data` is all of them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    @property
    def data(self) -> bytes:
        """What a `Reader` reads."""
        return b"".join(self.parts)

    def integers(self, values: np.ndarray, width: int) -> None:
        """(N,) numbers of `width` bits, as short as can be."""
        best, body, largest = 0, pack(values, width), int(values.max()) if len(values) else 0
        for count in range(1, MOST + 1):
            if len(values) and (largest + 1) ** count <= 256:
                coded = huffman(together(values, largest + 1, count))
                best, body = (count, coded) if len(coded) < len(body) else (best, body)
        self.parts.append(HEAD.pack(best, min(largest, 255), len(body)) + body)

    def floats(self, values: np.ndarray) -> None:
        """Numbers as they are in memory, in the array's own type."""
        self.parts.append(values.tobytes())


class Reader:
    """Reads in the order of writing. Raises `ValueError` where something else was written."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def integers(self, count: int, width: int) -> np.ndarray:
        """(count,) int64."""
        grouped, largest, size = HEAD.unpack(self._taken(HEAD.size))
        body = self._taken(size)
        if not grouped:
            return unpack(body, width, count)
        symbols = zlib.decompress(body, -15)
        if len(symbols) != -(-count // grouped) or largest >> width:
            raise ValueError(f"these are not {count} numbers of {width} bits")
        return apart(symbols, largest + 1, grouped)[:count]

    def floats(self, count: int, kind: str) -> np.ndarray:
        """(count,) of the numpy type `kind`."""
        return np.frombuffer(self._taken(count * np.dtype(kind).itemsize), kind)

    def end(self) -> None:
        """Nothing may be left."""
        if self.at != len(self.data):
            raise ValueError("there is more than was to be read")

    def _taken(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("the data ends too soon")
        self.at += size
        return self.data[self.at - size : self.at]
