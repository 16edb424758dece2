"""The tokenised cache: what goes in comes out, once, also after damage, a kill and in a race."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxnlp.data import cache

RECORDS = [
    {"input_ids": np.arange(7, dtype=np.int32), "label": np.int32(3), "score": np.float32(0.5)},
    {"input_ids": np.arange(1, dtype=np.int32), "label": np.int32(1), "score": np.float32(-1)},
    {"input_ids": np.arange(9001, dtype=np.int32), "label": np.int32(2), "score": np.float32(2)},
]


def encode(examples):
    """Examples are numbers of RECORDS."""
    return [RECORDS[example["number"]] for example in examples]


SOURCE = [{"number": 0}, {"number": 1}, {"number": 2}]


def build(folder, source=SOURCE, encode=encode, key=None):
    return cache.build(source, encode, key=key or {}, cache_dir=folder, progress=False)


def shards(folder):
    return sorted(folder.glob("*/*.array_record"))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(cache, "PIECE", 16)
    monkeypatch.setattr(cache, "SHARD_BYTES", 1000)
    monkeypatch.setattr(cache, "EXAMPLES_PER_CALL", 4)


def test_records_come_back(tmp_path):
    built = build(tmp_path)
    assert len(built) == 3
    np.testing.assert_array_equal(built.lengths, [7, 1, 9001])
    for i, expected in enumerate(RECORDS):
        assert built[i].keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(built[i][name], np.asarray(value), strict=True)
    np.testing.assert_array_equal(built[-1]["input_ids"], RECORDS[2]["input_ids"])
    with pytest.raises(IndexError):
        built[3]


def test_pieces_and_shards(tmp_path, small_pieces):
    """Records of many lengths, over many pieces and shards, with fields along the tokens and not."""
    random = np.random.default_rng(0)
    records = [
        {
            "input_ids": random.integers(0, 9, n, dtype=np.int32),
            "tags": random.integers(0, 9, n, dtype=np.int8),
            "vector": random.random(3, dtype=np.float32),
        }
        for n in (1, 15, 16, 17, 31, 32, 33, 200, 3, 64, 500, 1)
    ]
    built = build(
        tmp_path, [{"i": i} for i in range(len(records))], lambda examples: [records[e["i"]] for e in examples]
    )
    assert len(shards(tmp_path)) > 3
    for i, record in enumerate(records):
        n = len(record["input_ids"])
        for name, value in record.items():
            np.testing.assert_array_equal(built[i][name], value, strict=True)
        for start, stop in {(0, 1), (0, n), (n - 1, n), (n // 3, n // 2 + 1)}:
            np.testing.assert_array_equal(
                built.slice(i, start, stop)["input_ids"], record["input_ids"][start:stop], strict=True
            )
            np.testing.assert_array_equal(built.slice(i, start, stop)["tags"], record["tags"][start:stop], strict=True)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("m", [0, 1, 16, 17, 32, 70])
def test_arrays_of_other_lengths(tmp_path, small_pieces, n, m):
    """Each is as long as it was, whether it is longer, shorter, or has another's length by chance."""
    record = {
        "input_ids": np.arange(n, dtype=np.int32),
        "labels": np.arange(m, dtype=np.int32) + 100,
        "same": np.arange(n, dtype=np.int16) + 200,
        "matrix": np.arange(2 * n, dtype=np.int32).reshape(n, 2),
        "score": np.float32(0.5),
    }
    built = build(tmp_path, [{"i": 0}], lambda examples: [RECORDS[0], record, RECORDS[1]])
    np.testing.assert_array_equal(built.lengths, [7, max(n, m), 1])
    assert built[1].keys() == record.keys()
    for name, value in record.items():
        np.testing.assert_array_equal(built[1][name], np.asarray(value), strict=True)
    np.testing.assert_array_equal(built.slice(1, n - 1, n)["input_ids"], [n - 1])
    np.testing.assert_array_equal(built[2]["input_ids"], [0])


@pytest.mark.parametrize("n", [1, 16, 40])
def test_rows_of_choices(tmp_path, small_pieces, n):
    record = {"input_ids": np.arange(3 * n, dtype=np.int32).reshape(3, n), "label": np.int32(1)}
    built = build(tmp_path, [{"i": 0}], lambda examples: [record, RECORDS[1]])
    np.testing.assert_array_equal(built.lengths, [n, 1])
    for name, value in record.items():
        np.testing.assert_array_equal(built[0][name], np.asarray(value), strict=True)
    np.testing.assert_array_equal(built[1]["input_ids"], [0])


def test_many_are_read_together(tmp_path, small_pieces):
    records = [{"input_ids": np.arange(n, dtype=np.int32) + 1000 * n} for n in range(1, 60)]
    built = build(
        tmp_path, [{"i": i} for i in range(len(records))], lambda examples: [records[e["i"]] for e in examples]
    )
    assert len(shards(tmp_path)) > 2
    numbers = np.random.default_rng(0).integers(0, len(records), 100).tolist()  # some of them twice
    for i, found in zip(numbers, built.read(numbers), strict=True):
        np.testing.assert_array_equal(found["input_ids"], records[i]["input_ids"])
    assert built.read([]) == []


def test_is_built_once_per_key_and_source(tmp_path):
    calls = []

    def counted(examples):
        calls.append(len(examples))
        return encode(examples)

    for _ in range(2):
        build(tmp_path, encode=counted, key={"tokenizer": "a"})
    assert calls == [3]
    build(tmp_path, encode=counted, key={"tokenizer": "b"})
    assert calls == [3, 3]
    build(tmp_path, [{"number": 0}, {"number": 2}], encode=counted, key={"tokenizer": "a"})
    assert calls == [3, 3, 2]


def test_encode_may_give_more_or_fewer_records(tmp_path):
    built = build(tmp_path, encode=lambda examples: [RECORDS[1]] * 5)
    assert len(built) == 5


def test_records_without_tokens_are_left_out(tmp_path):
    empty = {"input_ids": np.zeros(0, np.int32)}
    built = build(tmp_path, encode=lambda examples: [empty, RECORDS[0], empty])
    np.testing.assert_array_equal(built.lengths, [7])


@pytest.mark.parametrize(
    ("source", "records", "message"),
    [
        ([], [], "source: found no examples; allowed: one or more"),
        (SOURCE, [{"input_ids": np.zeros(0, np.int32)}] * 3, "source: found no tokens in its 3 examples"),
    ],
)
def test_nothing_to_encode(tmp_path, source, records, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, source, lambda examples: records)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(file.read_bytes()[:-1]), pathlib.Path.unlink])
@pytest.mark.parametrize("name", ["manifest.json", "lengths.npy", "00000.array_record"])
def test_damage_is_noticed_and_mended(tmp_path, capsys, name, damage):
    build(tmp_path)
    (file,) = tmp_path.glob(f"*/{name}")
    damage(file)
    mended = build(tmp_path)
    said = capsys.readouterr().err
    assert name in said and "damaged" in said and "building it anew" in said
    np.testing.assert_array_equal(mended[2]["input_ids"], RECORDS[2]["input_ids"])
    build(tmp_path)
    assert capsys.readouterr().err == ""


def test_damage_after_opening_does_not_pass_for_data(tmp_path):
    """ArrayRecord has checksums of its own."""
    built = build(tmp_path)
    (file,) = shards(tmp_path)
    data = bytearray(file.read_bytes())
    at = data.find(np.arange(3000, 3010, dtype=np.int32).tobytes())
    data[at] ^= 1
    with open(file, "r+b") as opened:  # in place: the reader holds the file
        opened.write(data)
    with pytest.raises(Exception, match="(?i)corrupt|hash|checksum"):
        built[2]


def test_an_error_leaves_nothing(tmp_path):
    def fails(examples):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        build(tmp_path, encode=fails)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_threads_read_at_once(tmp_path, small_pieces):
    records = [{"input_ids": np.arange(n, dtype=np.int32) + 1000 * n} for n in range(1, 60)]
    built = build(
        tmp_path, [{"i": i} for i in range(len(records))], lambda examples: [records[e["i"]] for e in examples]
    )
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, len(records), 300):
            if not np.array_equal(built.slice(int(i), 0, int(i) + 1)["input_ids"], records[i]["input_ids"]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import pathlib, sys, time
import numpy as np
from jaxnlp.data import cache
folder = pathlib.Path(sys.argv[1])
def encode(examples):
    with open(folder / "calls", "a") as calls:
        calls.write("x")
    while not (folder / "go").exists():
        time.sleep(0.02)
    return [{"input_ids": np.arange(5, dtype=np.int32)} for _ in examples]
print("started", flush=True)
built = cache.build([{"text": "a"}, {"text": "b"}], encode, key={}, cache_dir=folder, progress=False)
print(built[1]["input_ids"].tolist())
"""


def start(folder):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    return process


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_while_building_then_built_by_two_at_once(tmp_path):
    killed = start(tmp_path)
    wait_for((tmp_path / "calls").exists)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob("*.partial"))
    (tmp_path / "calls").unlink()

    first = start(tmp_path)
    wait_for((tmp_path / "calls").exists)
    second = start(tmp_path)
    time.sleep(0.3)  # for the second to come to the first's work
    (tmp_path / "go").touch()
    assert [process.communicate()[0] for process in (first, second)] == ["[0, 1, 2, 3, 4]\n"] * 2
    assert (tmp_path / "calls").read_text() == "x", "both built it"
    assert not list(tmp_path.glob("*.partial"))
