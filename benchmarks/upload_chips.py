"""How fast chips reach the local S3 server, beside what boto3 and obstore reach bare.

    python benchmarks/upload_chips.py [--chips 1000] [--threads 8]

Starts the S3 server of the embedded stack alone, in a temporary folder. A chip is three files: a TIFF of
256 x 256 x 3 bytes, its world file, its annotation. The same chips are put under fresh keys, in turn: by
boto3 and by obstore, nothing but the request; by our ``Publication``, which adds the SHA-256 of every file,
"only if there is none yet", content checks and records. Twice, the faster counts. Then a whole export of a
raster of as many chips, into S3. Prints Markdown rows; the server's processor time is in a column of its own,
as it shares the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import rasterio
from exporting import exported
from s3_server import s3_server
from scenes import EXAMPLE, make_labels, make_raster
from watched import Clock

TILE = 256
File = tuple[str, bytes]


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="upload-benchmark-") as folder,
        s3_server(Path(folder), "cpu") as server,
    ):
        for line in _table(Path(folder), server, chosen.chips, chosen.threads):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _table(folder: Path, server: psutil.Process, chips: int, threads: int) -> Iterator[str]:
    files = _files(chips)
    mib = sum(len(data) for _, data in files) / 2**20
    yield f"{chips} chips, {len(files)} files, {mib:.0f} MiB, {threads} threads"
    yield ""
    yield "| case | seconds | chips/s | MiB/s | processor seconds | the server's |"
    yield "|---|---|---|---|---|---|"
    cases: dict[str, Callable[[list[File], int], None]] = {
        "boto3, bare": _by_boto3,
        "obstore, bare": _by_obstore,
        "ours": _by_publication,
    }
    best: dict[str, dict[str, float]] = {}
    for _ in range(2):
        for name, put in cases.items():
            read = _timed(server, partial(put, files, threads))
            if name not in best or read["wall_s"] < best[name]["wall_s"]:
                best[name] = read
    for name, read in best.items():
        yield _row(name, read, chips, mib)
    edge = round(chips**0.5) * TILE
    make_raster(folder / "scene.tif", edge)
    make_labels(folder / "labels.gpkg", edge, edge * edge // 5000)
    for metadata_format in ("PASCAL_VOC_rectangles", "Classified_Tiles"):
        made: list[int] = []
        read = _timed(server, partial(_export, folder, metadata_format, made))
        yield _row(f"{metadata_format}, plan to finish", read, made[0], made[1] / 2**20)


def _row(name: str, read: dict[str, float], chips: int, mib: float) -> str:
    wall = read["wall_s"]
    return (
        f"| {name} | {wall:.1f} | {chips / wall:.0f} | {mib / wall:.0f} "
        f"| {read['cpu_s']:.1f} | {read['server_s']:.1f} |"
    )


def _timed(server: psutil.Process, work: Callable[[], None]) -> dict[str, float]:
    def used() -> float:
        times = server.cpu_times()
        return float(times.user + times.system)

    clock, before = Clock(), used()
    work()
    return {**clock.read(), "server_s": used() - before}


def _files(chips: int) -> list[File]:
    from tasks.training_data.images import encode_image

    random = np.random.default_rng(0)
    with rasterio.open(EXAMPLE) as example:
        scene, wkt = example.read((1, 2, 3)), example.crs.to_wkt()
    made: list[File] = []
    for number in range(chips):
        row, col = (int(random.integers(0, size - TILE)) for size in scene.shape[1:])
        values = scene[:, row : row + TILE, col : col + TILE]
        stem = f"{number:09d}"
        made.append((f"images/{stem}.tif", encode_image(values, "TIFF", (0.1, 0, row, 0, -0.1, col), wkt)))
        made.append((f"images/{stem}.tfw", b"0.1000000000\n" * 6))
        made.append((f"labels/{stem}.xml", b"<object><name>1</name></object>\n" * 40))
    return made


def _by_boto3(files: list[File], threads: int) -> None:
    import boto3
    from botocore.config import Config

    access, prefix = _access(), _fresh()
    config = Config(s3={"addressing_style": "path"}, max_pool_connections=threads)
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=access["endpoint_url"],
        region_name=access["region"],
        aws_access_key_id=access["access_key"],
        aws_secret_access_key=access["secret_key"],
        config=config,
    )

    def put(file: File) -> None:
        client.put_object(Bucket="chipline", Key=f"{prefix}/{file[0]}", Body=file[1])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, files))


def _by_obstore(files: list[File], threads: int) -> None:
    import obstore
    from obstore.store import S3Store

    access, prefix = _access(), _fresh()
    store = S3Store(
        "chipline",
        endpoint=access["endpoint_url"],
        region=access["region"],
        access_key_id=access["access_key"],
        secret_access_key=access["secret_key"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def put(file: File) -> None:
        obstore.put(store, f"{prefix}/{file[0]}", file[1], use_multipart=False)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, files))


def _by_publication(files: list[File], threads: int) -> None:
    from tasks.store import ObjectStore, Publication

    publication = Publication(ObjectStore(), f"s3://chipline/{_fresh()}")
    with ThreadPoolExecutor(threads) as pool:
        records = list(pool.map(lambda file: publication.put_file(*file), files))
    publication.put_part("00000", records)


def _export(folder: Path, metadata_format: str, made: list[int]) -> None:
    answer = exported(folder, metadata_format, TILE, TILE)
    made += [answer["chips"], answer["bytes"]]


def _fresh() -> str:
    """A folder's key that no other run has, where the worker's identity may write."""
    return f"training-data/benchmark/{uuid.uuid4().hex}"


def _access() -> dict[str, str]:
    [access] = json.loads(os.environ["CHIPLINE_STORES"])
    return dict(access)


if __name__ == "__main__":
    main()
