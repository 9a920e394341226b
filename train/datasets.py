"""Data sets of one's own through Ray Data: files to documents, each once, in shards; shards to packed rows.

No step holds more than a few pieces of the files at a time, so a data set may be larger than memory. A task reserves
next to no CPU: a village's replicas may hold them all, and the cores are shared anyway.
"""

import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import ray
import ray.data

from cluster.settings import Settings
from train.bases import is_local
from train.causes import Cause, Failed
from train.data.contamination import Overlap
from train.data.mapped import write_index, write_rows
from train.data.records import document, json_rows, passages
from train.data.sources import Document, is_held_out, line_of, read_documents
from train.manifest import write_durably
from train.scale import SCRAP_OF_A_CPU

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
PIECE_BYTES = 8 << 20  # of a text file that one task reads
SHARD_BYTES = 32 << 20  # of source files that make one shard
HELD_OUT_BYTES = 4 << 20  # of source files at most, or finding what is seen in training would not fit into memory
UNKNOWN = -1  # the shard of rows that say nothing
KNOWN_FIELDS = "text, messages, conversations, or prompt, instruction or question with response, completion or output"


@dataclass(frozen=True)
class Gathered:
    """What `gather` left in its folder: documents held out, numbers of everything, a digest of all of it."""

    held_out: tuple[Document, ...]
    counts: Counter[str]  # training, held_out, duplicates, unknown, bytes
    digest: str


@contextmanager
def connected() -> Iterator[None]:
    """A Ray to work on: the one that is there, the job's cluster, or one of this process's own."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or Settings().ray_address or "local"
    ray.init(address=address, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def gather(names: Sequence[str], folder: Path, share: float) -> Gathered:
    """Documents of all data sets into `folder`, those of equal words once. Raises `Failed` where there are none.

    `share` of them is held out, decided by what each says; less of large data sets.
    """
    files = [(name, file) for name in names for file in found(name)]
    size = sum(file.stat().st_size for _, file in files)
    count = max(1, -(-size // SHARD_BYTES))
    held = min(share, HELD_OUT_BYTES / max(1, size))
    parts, pieces = folder / "parts", [piece for name, file in files for piece in cut(source_of(name), file)]
    try:
        read = ray.data.from_items(pieces, override_num_blocks=len(pieces)).flat_map(
            partial(records, shards=count, held_out=held), num_cpus=SCRAP_OF_A_CPU
        )
        read.write_parquet(str(parts), partition_cols=["shard"], ray_remote_args={"num_cpus": SCRAP_OF_A_CPU})
    except Exception as error:
        raise unreadable(error) from error
    made = (
        ray.data.from_items([{"number": number} for number in range(count)], override_num_blocks=count)
        .map(partial(shard, folder=str(folder)), num_cpus=SCRAP_OF_A_CPU)
        .take_all()
    )
    counts = Counter({"bytes": size})
    for row in made:
        counts.update({name: int(row[name]) for name in ("training", "held_out", "duplicates")})
    strange = list(lines(parts, UNKNOWN))
    counts["unknown"] = len(strange)
    if not counts["training"]:
        having = f"; there are {strange[0][2]}" if strange else ""
        raise Failed(f"no documents in {', '.join(names)}: rows want {KNOWN_FIELDS}{having}", Cause.DATA)
    kept = [document for path in sorted(folder.glob("held-*.jsonl")) for document in read_documents(path)]
    digests = "".join(row["digest"] for row in sorted(made, key=lambda row: row["number"]))
    shutil.rmtree(parts)
    return Gathered(tuple(kept), counts, hashlib.sha256(digests.encode()).hexdigest())


def found(name: str) -> list[Path]:
    """The files of a data set: a file, a folder, or what a hub has under that id. Raises `Failed`."""
    if is_local(name):
        where = Path(name).expanduser()
    else:
        from huggingface_hub import snapshot_download

        try:
            patterns = [f"*{suffix}" for suffix in SUFFIXES]
            where = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
        except Exception as error:  # the hub's client raises its own, the HTTP library's and the socket's
            raise Failed(f"data set {name} cannot be had: {error}", Cause.DATA, dataset=name) from error
    files = [where] if where.is_file() else sorted(path for path in where.rglob("*") if path.is_file())
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        raise Failed(f"no files in {name} that end in {', '.join(SUFFIXES)}", Cause.DATA, dataset=name)
    return files


def source_of(name: str) -> str:
    """What a phase's `mix` calls the data set."""
    return f"data:{Path(name).stem}"


def cut(source: str, file: Path) -> Iterator[dict[str, Any]]:
    """Pieces that a task reads by itself: stretches of bytes, or of a table its groups of rows."""
    whole = {"source": source, "path": str(file.absolute())}
    if file.suffix == ".parquet":
        try:
            groups = pq.ParquetFile(file).num_row_groups
        except (OSError, ValueError) as error:
            raise Failed(f"{file.name} cannot be read: {error}", Cause.DATA) from error
        yield from (whole | {"start": group, "end": group + 1} for group in range(groups))
    else:
        size = file.stat().st_size
        yield from (whole | {"start": i, "end": min(size, i + PIECE_BYTES)} for i in range(0, size, PIECE_BYTES))


def records(piece: Mapping[str, Any], shards: int, held_out: float) -> Iterator[dict[str, Any]]:
    """A piece's documents, each as a line with its fingerprint and the number of its shard."""
    for row in rows(piece):
        made = document(row, piece["source"])
        if made is None:
            yield {"shard": UNKNOWN, "held_out": False, "fingerprint": "", "line": ", ".join(row) or "no fields"}
            continue
        # The same words are one document, whichever data sets they are in.
        said = Document("", made.text, made.turns)
        yield {
            "shard": int(said.fingerprint[-8:], 16) % shards, "held_out": is_held_out(said, held_out),
            "fingerprint": said.fingerprint, "line": line_of(made),
        }  # fmt: skip


def rows(piece: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What is in a piece, as fields by name."""
    path = Path(piece["path"])
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).read_row_group(int(piece["start"])).to_pylist()
        return
    content = owned(path, int(piece["start"]), int(piece["end"]))
    yield from json_rows(content) if path.suffix == ".jsonl" else passages(content.decode(errors="replace"))


def owned(path: Path, start: int, end: int) -> bytes:
    """The lines that begin at `start` or after it and before `end`."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # it begins in the piece before, unless `start` is a line's first byte
        begun = file.tell()
        content = file.read(max(0, end - begun))
        return content if content.endswith(b"\n") or not content else content + file.readline()


def lines(parts: Path, number: int) -> Iterator[tuple[str, bool, str]]:
    """(fingerprint, whether it is held out, line) of everything in a shard's parts."""
    for path in (parts / f"shard={number}").glob("*.parquet"):
        for row in pq.ParquetFile(path).read().to_pylist():
            yield row["fingerprint"], row["held_out"], row["line"]


def shard(row: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Write shard `number` of its parts: each document once, ordered by fingerprint, so that chance has no say."""
    number, where = int(row["number"]), Path(folder)
    sides: dict[bool, list[str]] = {True: [], False: []}
    before, duplicates = "", 0
    for print_, held_out, line in sorted(lines(where / "parts", number)):
        duplicates += print_ == before
        if print_ != before:
            sides[held_out].append(line)
        before = print_
    content = {side: "".join(f"{line}\n" for line in kept).encode() for side, kept in sides.items()}
    write_durably(where / f"held-{number:05}.jsonl", lambda file: file.write(content[True]))
    write_durably(where / f"{number:05}.jsonl", lambda file: file.write(content[False]))
    return {
        "number": number, "training": len(sides[False]), "held_out": len(sides[True]), "duplicates": duplicates,
        "digest": hashlib.sha256(content[False] + content[True]).hexdigest(),
    }  # fmt: skip


def seen(shards: Sequence[Path], overlap: Overlap) -> set[int]:
    """The numbers of held-out documents that share text with a shard's."""
    items = [{"path": str(path)} for path in shards]

    def hits(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"hits": sorted(overlap.seen(read_documents(Path(row["path"]))))}

    found_in = ray.data.from_items(items, override_num_blocks=len(items)).map(hits, num_cpus=SCRAP_OF_A_CPU).take_all()
    return {int(number) for row in found_in for number in row["hits"]}


@dataclass(frozen=True)
class Packing:
    """How documents become rows. A source's documents are taken `mix` times; a part of a time takes a part of them."""

    tokenizer: Any
    mix: Mapping[str, float]
    context: int
    pad: int

    def write(self, path: Path, documents: Iterator[Document]) -> int:
        """The rows of these documents into the file; returns how many."""
        chosen = [made for made in documents for _ in range(self.times(made))]
        random.Random(path.name).shuffle(chosen)
        ids = [self.tokenizer.chat(d.turns) if d.turns else self.tokenizer.text(d.text) for d in chosen]
        return write_rows(path, ids, self.context, self.pad, self.tokenizer.vocab_size)

    def times(self, made: Document) -> int:
        """How often an epoch takes the document: decided by what it says."""
        whole, part = divmod(self.mix.get(made.source, 1.0), 1.0)
        return int(whole) + (int(made.fingerprint[8:16], 16) < part * 0x1_0000_0000)


def pack_rows(packing: Packing, documents: Sequence[Document], shards: Sequence[Path], folder: Path) -> None:
    """Leave `MappedRows`'s files in `folder`: the rows of the documents, then those of each shard, a task each."""

    def pack(row: Mapping[str, Any]) -> dict[str, Any]:
        path = folder / row["name"]
        return {"name": row["name"], "rows": packing.write(path, read_documents(Path(row["path"])))}

    items = [{"name": f"{path.stem}.npy", "path": str(path)} for path in shards]
    with connected():
        read = ray.data.from_items(items, override_num_blocks=len(items))
        packed = read.map(pack, num_cpus=SCRAP_OF_A_CPU).take_all()
    first = {"first.npy": packing.write(folder / "first.npy", iter(documents))}
    write_index(folder, first | {row["name"]: int(row["rows"]) for row in packed})


def unreadable(error: BaseException) -> BaseException:
    """What a file's content is to blame for as `Failed`; anything else as it is."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, pyarrow.ArrowException):
            return Failed(f"the data cannot be read: {link}", Cause.DATA)
        link = getattr(link, "cause", None) or link.__cause__
    return error
