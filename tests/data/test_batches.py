"""Batches: pure in (seed, step), every token and example counted once, and the literal examples of the docstrings."""

import itertools

import numpy as np
import pytest

from jaxnlp.data import batches, ramp


def documents(lengths, first=1):
    """Documents in which no id occurs twice, so that a token can be followed to where it ends up."""
    ends = np.cumsum(lengths)
    return [list(range(first + end - n, first + end)) for n, end in zip(lengths, ends)]


def one_epoch(made, epoch=0):
    """All rows of an epoch, stacked. In training, an epoch of windows ends within a batch: its rows alone."""
    steps = [made(epoch * made.steps_per_epoch + step) for step in range(made.steps_per_epoch)]
    return {name: np.concatenate([batch[name] for batch in steps]) for name in steps[0]}


def test_a_ramp_leaves_no_row_out(make_cache):
    """Steps of 1, 1, 2, 3, 3, … batches are those batches one after another, for every host's rows."""
    small = batches.windows(make_cache(documents(LENGTHS)), length=4, batch_size=2, seed=0)
    ramped = ramp.Ramped(small, (1, 1, 2, 3))
    assert (ramped.batch_size, ramped.shapes) == (6, ((2, 4), (4, 4), (6, 4)))
    one_by_one = [small(step) for step in range(10)]
    grown = [ramped(step) for step in range(5)]
    assert [len(batch["weights"]) for batch in grown] == [2, 2, 4, 6, 6]
    for name in one_by_one[0]:
        expected, found = (np.concatenate([batch[name] for batch in made]) for made in (one_by_one, grown))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(ramped(4, slice(1, 5))[name], grown[4][name][1:5])
        np.testing.assert_array_equal(ramped(3, np.array([0, 5]))[name], grown[3][name][[0, 5]])


def test_a_ramp_of_several_lengths_is_refused(make_cache):
    with pytest.raises(ValueError, match="ramp: found rows of 3 lengths, 5, 8, 16; allowed: one length"):
        ramp.Ramped(make_pairs(make_cache, PAIRS, 2, seed=0), (1, 2))


LENGTHS = (5, 1, 17, 2, 9, 30, 1, 1, 3)
PAIRS = tuple(zip(LENGTHS, (7, 1, 12, 3, 16, 30, 5, 2, 9)))  # lengths of source and target


def records_of(lengths):
    """Pairs in which no id occurs twice, so that both sides can be followed."""
    found = documents([n for pair in lengths for n in pair], first=100)
    return [{"input_ids": source, "labels": target} for source, target in zip(found[::2], found[1::2])]


def make_pairs(make_cache, lengths, batch_size, seed, max_length=16, buckets=(5, 8, 16)):
    return batches.pairs(
        make_cache(records_of(lengths)),
        batch_size=batch_size,
        max_length=max_length,
        pad_id=0,
        bos_id=1,
        seed=seed,
        buckets=buckets,
    )


MAKE = {  # every kind of batches, in evaluation and in training
    "windows": lambda make_cache, seed: batches.windows(
        make_cache(documents(LENGTHS)), length=4, batch_size=6, seed=seed
    ),
    "apart": lambda make_cache, seed: batches.windows(
        make_cache(documents(LENGTHS)), length=4, batch_size=6, seed=seed, apart=True
    ),
    "one document": lambda make_cache, seed: batches.windows(
        make_cache([range(50)]), length=7, batch_size=4, seed=seed
    ),
    "shorter than a window": lambda make_cache, seed: batches.windows(
        make_cache([[1, 2], [3]]), length=8, batch_size=4, seed=seed
    ),
    "padded": lambda make_cache, seed: batches.padded(
        make_cache([{"input_ids": d, "label": d[0]} for d in documents(LENGTHS)]),
        batch_size=4,
        max_length=16,
        pad_id=0,
        seed=seed,
        buckets=(2, 8, 16),
    ),
    "pairs": lambda make_cache, seed: make_pairs(make_cache, PAIRS, batch_size=2, seed=seed),
}


@pytest.fixture(params=MAKE)
def make(request, make_cache):
    return lambda seed: MAKE[request.param](make_cache, seed)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


@pytest.mark.parametrize("seed", [None, 3])
class TestPure:
    def test_resumed_and_in_any_order(self, make, seed):
        made, resumed = make(seed), make(seed)
        last = made.steps_per_epoch if seed is None else 3 * made.steps_per_epoch + 1
        forwards = [made(step) for step in range(last)]
        for step in reversed(range(last)):
            same(resumed(step), forwards[step])

    @pytest.mark.parametrize("hosts", [1, 2, 3, 4])
    def test_hosts_rows_are_the_batchs(self, make, seed, hosts):
        made = make(seed)
        for step in range(made.steps_per_epoch):
            whole = made(step)
            cuts = np.linspace(0, made.batch_size, hosts + 1).astype(int)
            slices = [slice(a, b) for a, b in itertools.pairwise(cuts)]
            for rows in (slices, [np.arange(made.batch_size)[part] for part in slices]):
                parts = [make(seed)(step, part) for part in rows]
                same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)

    def test_few_static_shapes(self, make, seed):
        made = make(seed)
        found = {made(step)["input_ids"].shape for step in range(made.steps_per_epoch)}
        assert found <= set(made.shapes)
        assert len(made.shapes) <= 3

    def test_dtypes(self, make, seed):
        for name, array in make(seed)(0).items():
            assert array.dtype == (np.float32 if name == "weights" else np.int32), name


def test_seeds_and_epochs_differ(make):
    def epoch(seed, number):
        made = make(seed)
        steps = range(number * made.steps_per_epoch, (number + 1) * made.steps_per_epoch)
        return [token for step in steps for token in made(step)["input_ids"].ravel()]

    if make(0).cache.lengths.sum() > 3:  # the shortest text has two orders only
        assert epoch(0, 0) != epoch(1, 0)
        assert epoch(0, 0) != epoch(0, 1)


def test_evaluation_is_one_pass(make):
    made = make(None)
    with pytest.raises(IndexError, match=f"step: found {made.steps_per_epoch}; allowed: 0 to"):
        made(made.steps_per_epoch)
    with pytest.raises(IndexError, match="step: found -1"):
        made(-1)


class TestWindows:
    def test_docstring(self, make_cache):
        a, b, c, d, e, end = range(1, 7)
        cache = make_cache([[a, b, end], [c, d, e, end]])
        batch = batches.windows(cache, length=3, batch_size=2, seed=None)(0)
        np.testing.assert_array_equal(batch["input_ids"], [[a, b, end], [c, d, e]])
        np.testing.assert_array_equal(batch["labels"], [[b, end, c], [d, e, end]])
        np.testing.assert_array_equal(batch["weights"], [[1, 1, 1], [1, 1, 1]])
        apart = batches.windows(cache, length=3, batch_size=2, seed=None, apart=True)(0)
        np.testing.assert_array_equal(apart["weights"], [[1, 1, 0], [1, 1, 1]])
        np.testing.assert_array_equal(apart["segment_ids"], [[1, 1, 1], [1, 1, 1]])
        np.testing.assert_array_equal(apart["position_ids"], [[0, 1, 2], [0, 1, 2]])
        sliding = batches.windows(cache, length=3, batch_size=4, seed=None, stride=1)(0)
        np.testing.assert_array_equal(sliding["input_ids"], [[a, b, end], [b, end, c], [end, c, d], [c, d, e]])
        np.testing.assert_array_equal(sliding["weights"], [[1, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])

    def test_golden(self, make_cache):
        """Pins the plan: another order would silently change what a resumed run sees."""
        batch = batches.windows(make_cache(documents([3, 4, 5])), length=4, batch_size=3, seed=0, apart=True)(1)
        np.testing.assert_array_equal(batch["input_ids"], [[8, 9, 10, 11], [4, 5, 6, 7], [12, 1, 2, 3]])
        np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]])
        np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 2]])

    @pytest.mark.parametrize("length", [1, 2, 4, 7, 68, 69, 200])
    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("stride", [None, 1, 3])
    def test_evaluation_counts_every_token_once(self, make_cache, length, apart, stride):
        docs, stride = documents(LENGTHS), stride and min(stride, length)
        line = np.concatenate(docs)
        made = batches.windows(make_cache(docs), length=length, batch_size=5, seed=None, apart=apart, stride=stride)
        rows = one_epoch(made)
        counted = rows["weights"] > 0
        firsts = {d[0] for d in docs} if apart else {line[0]}
        expected = [token for token in line if token not in firsts]
        np.testing.assert_array_equal(rows["labels"][counted], expected)
        if not apart:
            np.testing.assert_array_equal(rows["input_ids"][counted], line[:-1])

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("lengths", [LENGTHS, (69,), (1,) * 30])
    def test_an_epoch_of_training_counts_no_token_twice(self, make_cache, lengths, apart):
        docs, length = documents(lengths), 4
        made = batches.windows(make_cache(docs), length=length, batch_size=1, seed=5, apart=apart)
        for epoch in range(3):
            rows = one_epoch(made, epoch)
            labels = rows["labels"].ravel()
            assert len(set(labels)) == len(labels), "a token is a label twice"
            assert sum(lengths) - len(labels) < length, "more is left out than the end that fills no window"
            ends = {d[-1] for d in docs}
            follows = rows["labels"] == rows["input_ids"] + 1
            within = follows & ~np.isin(rows["input_ids"], list(ends))
            assert (within | np.isin(rows["input_ids"], list(ends))).all()
            np.testing.assert_array_equal(rows["weights"], within if apart else np.ones_like(within))

    def test_documents_meet_others_in_another_epoch(self, make_cache):
        docs = documents([2] * 20)
        made = batches.windows(make_cache(docs), length=4, batch_size=1, seed=0)
        starts = {d[0] for d in docs}

        def neighbours(epoch):
            rows = one_epoch(made, epoch)
            return {(i, j) for i, j in zip(rows["input_ids"].ravel(), rows["labels"].ravel()) if j in starts}

        assert len(neighbours(0) & neighbours(1)) < 8  # of 20

    def test_every_token_is_a_label_in_some_epoch(self, make_cache):
        made = batches.windows(make_cache([range(1, 24)]), length=8, batch_size=2, seed=0)
        seen = np.concatenate([made(step)["labels"].ravel() for step in range(40)])
        assert set(seen) == set(range(1, 24))

    def test_batches_run_on_over_the_end_of_an_epoch(self, make_cache):
        made = batches.windows(make_cache([range(1, 14)]), length=4, batch_size=2, seed=0)
        assert made.n_windows == 3
        one_by_one = batches.windows(make_cache([range(1, 14)]), length=4, batch_size=1, seed=0)
        for step in range(6):
            for row in range(2):
                same(made(step, slice(row, row + 1)), one_by_one(2 * step + row))

    def test_apart_restarts_positions_and_numbers_segments(self, make_cache):
        docs = documents(LENGTHS)
        document_of = {token: i for i, d in enumerate(docs) for token in d}
        for seed in (None, 1):
            rows = one_epoch(batches.windows(make_cache(docs), length=11, batch_size=3, seed=seed, apart=True))
            for ids, segments, positions in zip(rows["input_ids"], rows["segment_ids"], rows["position_ids"]):
                real = segments > 0
                assert not ids[~real].any()
                owners = [document_of[token] for token in ids[real]]
                changes = np.flatnonzero(np.diff(owners)) + 1
                starts = np.concatenate([[0], changes]).astype(int)
                expected = np.searchsorted(starts, np.arange(real.sum()), side="right")
                np.testing.assert_array_equal(segments[real], expected)
                np.testing.assert_array_equal(positions[real], np.arange(real.sum()) - starts[expected - 1])

    @pytest.mark.parametrize("seed", [None, 0])
    def test_shorter_than_a_window(self, make_cache, seed):
        batch = batches.windows(make_cache([[7, 8, 9]]), length=5, batch_size=1, seed=seed)(0)
        np.testing.assert_array_equal(batch["input_ids"], [[7, 8, 9, 0, 0]])
        np.testing.assert_array_equal(batch["labels"], [[8, 9, 0, 0, 0]])
        np.testing.assert_array_equal(batch["weights"], [[1, 1, 0, 0, 0]])

    def test_bad_input(self, make_cache):
        with pytest.raises(ValueError, match="found 1 tokens in all; allowed: 2 or more"):
            batches.windows(make_cache([[1]]), length=4, batch_size=1, seed=None)
        for wrong in ({"length": 0}, {"batch_size": 0}, {"seed": -1}):
            with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found .*; allowed: [01] or more"):
                batches.windows(make_cache([[1, 2]]), **({"length": 4, "batch_size": 1, "seed": 0} | wrong))
        for stride, seed in ((0, None), (5, None), (3, 0)):
            with pytest.raises(ValueError, match=rf"stride: found {stride}; allowed: 1 … length=4 in evaluation, 4 in"):
                batches.windows(make_cache([[1, 2]]), length=4, batch_size=1, seed=seed, stride=stride)


class TestPadded:
    def test_docstring(self, make_cache):
        cache = make_cache([{"input_ids": [5, 6, 7], "label": 1}, {"input_ids": [8], "label": 0}])
        made = batches.padded(cache, batch_size=2, max_length=8, pad_id=0, seed=None, buckets=(4, 8))
        batch = made(0)
        np.testing.assert_array_equal(batch["input_ids"], [[5, 6, 7, 0], [8, 0, 0, 0]])
        np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 1, 0], [1, 0, 0, 0]])
        np.testing.assert_array_equal(batch["labels"], [1, 0])
        np.testing.assert_array_equal(batch["weights"], [1, 1])
        assert made.shapes == ((2, 4),)

    @pytest.mark.parametrize("seed", [None, 4])
    @pytest.mark.parametrize("batch_size", [1, 4, 9, 20])
    def test_every_example_once_an_epoch(self, make_cache, seed, batch_size):
        docs = documents(LENGTHS)
        cache = make_cache([{"input_ids": d, "label": i} for i, d in enumerate(docs)])
        made = batches.padded(cache, batch_size=batch_size, max_length=16, pad_id=99, seed=seed, buckets=(2, 8, 16))
        for epoch in range(1 if seed is None else 3):
            labels = []
            for step in range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch):
                batch = made(step)
                for ids, mask, label, weight in zip(
                    *(batch[n] for n in ("input_ids", "attention_mask", "labels", "weights"))
                ):
                    if weight:
                        labels.append(int(label))
                        expected = docs[label][:16]
                        np.testing.assert_array_equal(ids[: len(expected)], expected)
                        assert mask.sum() == len(expected)
                    assert (ids[mask == 0] == 99).all()
                    assert weight or not mask.any()
            assert sorted(labels) == list(range(len(docs)))
            if seed is None:
                assert labels == sorted(labels)

    def test_training_gathers_a_bucket(self, make_cache):
        lengths = [2] * 8 + [8] * 8 + [16] * 8
        made = batches.padded(
            make_cache(documents(lengths)), batch_size=4, max_length=16, pad_id=0, seed=0, buckets=(2, 8, 16)
        )
        widths = [made(step)["input_ids"].shape[1] for step in range(made.steps_per_epoch)]
        assert sorted(widths) == [2, 2, 8, 8, 16, 16]
        assert widths != sorted(widths)

    def test_fields_along_the_tokens(self, make_cache):
        records = [{"input_ids": [1, 2, 3], "tags": [7, 8, 9], "label": 5}, {"input_ids": [4], "tags": [6], "label": 2}]
        batch = batches.padded(make_cache(records), batch_size=3, max_length=2, pad_id=0, seed=None)(0)
        np.testing.assert_array_equal(batch["input_ids"], [[1, 2], [4, 0], [0, 0]])
        np.testing.assert_array_equal(batch["tags"], [[7, 8], [6, 0], [0, 0]])
        np.testing.assert_array_equal(batch["labels"], [5, 2, 0])
        np.testing.assert_array_equal(batch["weights"], [1, 1, 0])

    def test_default_buckets_are_powers_of_two_that_occur(self, make_cache):
        cache = make_cache(documents([3, 33, 100, 400]))
        made = batches.padded(cache, batch_size=2, max_length=100, pad_id=0, seed=0)
        assert made.shapes == ((2, 32), (2, 64), (2, 100))

    @pytest.mark.parametrize("buckets", [(), (4,), (8, 4, 16), (4, 4, 16), (0, 16)])
    def test_bad_buckets(self, make_cache, buckets):
        with pytest.raises(ValueError, match="allowed: rising lengths of which the last is max_length=16"):
            batches.padded(make_cache([[1]]), batch_size=1, max_length=16, pad_id=0, seed=None, buckets=buckets)


class TestPairs:
    def test_docstring(self, make_cache):
        cache = make_cache([{"input_ids": [5, 6, 2], "labels": [7, 2]}, {"input_ids": [8, 2], "labels": [9, 6, 7, 2]}])
        made = batches.pairs(cache, batch_size=1, max_length=8, pad_id=0, bos_id=1, seed=None, buckets=(4, 8))
        assert made.shapes == ((2, 4),) and made.steps_per_epoch == 1
        expected = {
            "input_ids": [[5, 6, 2, 0], [8, 2, 0, 0]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
            "decoder_input_ids": [[1, 7, 0, 0], [1, 9, 6, 7]],
            "labels": [[7, 2, 0, 0], [9, 6, 7, 2]],
            "weights": [[1, 1, 0, 0], [1, 1, 1, 1]],
        }
        assert made(0).keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(made(0)[name], array, err_msg=name)
        np.testing.assert_array_equal(made(0, slice(0, 0))["labels"], np.zeros([0, 4]))

    @pytest.mark.parametrize("seed", [None, 4])
    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_every_pair_once_an_epoch(self, make_cache, capsys, seed, batch_size):
        made = make_pairs(make_cache, PAIRS, batch_size, seed)
        assert capsys.readouterr().err == (
            f"pairs: 2 of 9 are longer than 16 tokens and {'cut' if seed is None else 'left out'}\n"
        )
        records = records_of(PAIRS)
        expected = [i for i, pair in enumerate(PAIRS) if seed is None or max(pair) <= 16]
        for epoch in range(1 if seed is None else 3):
            seen = []
            for step in range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch):
                batch, examples = made(step), made.examples(step)
                assert len(examples) == len(batch["weights"])
                for row, example in enumerate(examples):
                    width = batch["labels"].shape[1]
                    source, target = ((), ()) if example < 0 else (records[example][n] for n in ("input_ids", "labels"))
                    source, inputs, target = source[:width], [1, *target[:-1]][: len(target)][:width], target[:width]
                    for name, real in (("input_ids", source), ("decoder_input_ids", inputs), ("labels", target)):
                        np.testing.assert_array_equal(batch[name][row], [*real, *[0] * (width - len(real))])
                    for name, real in (("attention_mask", source), ("weights", target)):
                        np.testing.assert_array_equal(batch[name][row], np.arange(width) < len(real))
                seen += examples[examples >= 0].tolist()
            assert sorted(seen) == expected
        if seed is None:  # the buckets 5, 8 and 16, each in order
            assert seen == [1, 3, 6, 7, 0, 2, 4, 5, 8]

    def test_a_step_has_as_many_tokens_whatever_its_length(self, make_cache):
        lengths = [(4, 3)] * 50 + [(2, 8)] * 30 + [(16, 1)] * 9
        made = make_pairs(make_cache, lengths, 4, seed=0)
        assert made.shapes == ((12, 5), (8, 8), (4, 16))
        found = [made(step)["labels"].shape for step in range(made.steps_per_epoch)]
        assert sorted(found) == [(4, 16)] * 3 + [(8, 8)] * 4 + [(12, 5)] * 5
        assert found != sorted(found)
        for epoch in range(3):  # as many steps of each shape: so the number of steps is every epoch's
            steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
            assert sorted(made(step)["labels"].shape for step in steps) == sorted(found)

    def test_golden(self, make_cache):
        """Pins the plan: another order would silently change what a resumed run sees."""
        made = make_pairs(make_cache, PAIRS, 2, seed=0)
        found = [made.examples(step).tolist() for step in range(made.steps_per_epoch)]
        assert found == [[4, 8], [7, 1, 6, 3, -1, -1], [0, -1, -1, -1]]

    def test_default_buckets(self, make_cache):
        made = make_pairs(make_cache, [(n, n) for n in range(1, 49)], 2, seed=0, max_length=48, buckets=None)
        assert made.shapes == ((16, 6), (12, 8), (8, 12), (6, 16), (4, 24), (2, 48))
        assert make_pairs(make_cache, [(1, 1)], 2, seed=0, max_length=1, buckets=None).shapes == ((2, 1),)

    def test_bad_input(self, make_cache):
        with pytest.raises(ValueError, match="max_length: found 3; allowed: 4, the shortest pair, or more"):
            make_pairs(make_cache, [(4, 2), (1, 5)], 2, seed=0, max_length=3, buckets=(3,))
        with pytest.raises(ValueError, match="pairs: found records of input_ids, label; allowed: input_ids and labels"):
            batches.pairs(
                make_cache([{"input_ids": [1], "label": 1}]), batch_size=1, max_length=4, pad_id=0, bos_id=1, seed=0
            )
        with pytest.raises(ValueError, match="allowed: rising lengths of which the last is max_length=16"):
            make_pairs(make_cache, PAIRS, 2, seed=0, buckets=(5, 8))


def test_mapped(make_cache):
    made = batches.windows(make_cache([range(20)]), length=4, batch_size=2, seed=0)
    mapped = batches.Mapped(made, lambda batch: batch | {"n": batch["weights"].sum(1)})
    assert isinstance(made, batches.Batches) and isinstance(mapped, batches.Batches)
    assert (mapped.steps_per_epoch, mapped.shapes) == (made.steps_per_epoch, made.shapes)
    np.testing.assert_array_equal(mapped(1, slice(0, 1))["n"], [4.0])


def test_pad():
    batch = batches.pad([[5, 6], [7]], pad_id=3, max_length=64)
    np.testing.assert_array_equal(batch["input_ids"][:, :3], [[5, 6, 3], [7, 3, 3]])
    np.testing.assert_array_equal(batch["attention_mask"].sum(1), [2, 1])
    assert batches.pad([[1] * 33], pad_id=0, max_length=64)["input_ids"].shape == (1, 64)
    assert batches.pad([[1] * 33], pad_id=0, max_length=48)["input_ids"].shape == (1, 48)
