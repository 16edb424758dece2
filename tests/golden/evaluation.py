"""Writes evaluation.npz: how likely texts are to the GPT2LMHeadModel of gpt2.py, each read whole and without a cache.

    python tests/golden/evaluation.py          where PyTorch and transformers are installed

A token is a character: id 2 the space, 3 the "0", and so on. 0 ends a text.
    stream     one long text, and for several (window, stride) the nats of transformers' sliding window, with its count
    prompts    each with choices, and of each choice log p and whether greedy decoding gives it; log p after "A:" too
    passages   and of the last word's characters, the space before it too, log p and which of them are the likeliest
"""

import pathlib

import numpy as np

ALPHABET = " " + "".join(chr(ord("0") + i) for i in range(58))
WINDOWS = ((17, 16), (17, 5), (17, 1), (24, 7))
MAX_POSITIONS = 24


def ids(text: str) -> list[int]:
    return [2 + ALPHABET.index(character) for character in text]


def spelled(ids) -> str:
    return "".join(ALPHABET[i - 2] for i in ids)


def log_probs(model, before: list[int], after: list[int]):
    """Of each token of `after` its log p, and whether it is the likeliest."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].double()
    chosen = torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)]
    return chosen.numpy(), (logits.argmax(-1) == torch.tensor(after)).numpy()


def sliding_window(model, stream: list[int], max_length: int, stride: int) -> tuple[float, int]:
    """Nats and tokens, as transformers' guide to the perplexity of fixed-length models goes about it."""
    nats, count, end = 0.0, 0, 1  # nothing precedes the first token
    for begin in range(0, len(stream), stride):
        stop = min(begin + max_length, len(stream))
        window, new = stream[begin:stop], stop - end
        log_p, _ = log_probs(model, window[:-new], window[-new:])
        nats, count, end = nats - log_p.sum(), count + new, stop
        if stop == len(stream):
            return nats, count


def passage(model, rng, kind: str) -> str:
    """Three words; the model goes on with all of the last one ("word"), with its last character ("end"), or not."""
    import torch

    while True:
        text = ids(
            " ".join(spelled(rng.integers(3, 61, rng.integers(2, 6))) for _ in range(2 if kind == "word" else 3))
        )
        for _ in range({"word": MAX_POSITIONS - len(text), "end": 1, "none": 0}[kind]):
            with torch.no_grad():
                likeliest = int(model(torch.tensor([text])).logits[0, -1].argmax())
            if (likeliest == 2) == (text.count(2) == 2) or likeliest < 2:  # not two spaces, and no other than two
                break
            text.append(likeliest)
        else:
            return spelled(text)
        if kind == "word" and text.count(2) == 2 and text[-1] != 2:
            return spelled(text)


def make(model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    stream = rng.integers(2, 61, 90).tolist()
    arrays = {"stream": np.array(spelled(stream))}
    arrays["windows"] = np.array([(*w, *sliding_window(model, [*stream, 0], *w)) for w in WINDOWS])
    prompts = [spelled(rng.integers(3, 61, n)) for n in (9, 4, 9, 12, 1, 6)]
    choices = [[spelled(rng.integers(3, 61, n)) for n in rng.permutation([1, 3, 6])] for _ in prompts]
    arrays |= {"prompts": np.array(prompts), "choices": np.array(choices)}
    after = lambda prompt, choice: log_probs(model, ids(prompt), ids(" " + choice))  # noqa: E731
    found = [[after(prompt, choice) for choice in each] for prompt, each in zip(prompts, choices)]
    arrays["log_prob"] = np.array([[log_p.sum() for log_p, _ in each] for each in found])
    arrays["alone"] = np.array([[after("A:", choice)[0].sum() for choice in each] for each in choices])
    passages = [passage(model, rng, kind) for kind in ("word", "none", "end", "none") * 2]
    cut = [text.rindex(" ") for text in passages]
    words = [log_probs(model, ids(text[:at]), ids(text[at:])) for text, at in zip(passages, cut)]
    arrays["passages"] = np.array(passages)
    arrays["word_log_prob"] = np.array([log_p.sum() for log_p, _ in words])
    arrays["word_tokens"] = np.array([len(log_p) for log_p, _ in words])
    arrays["word_right"] = np.array([best.all() for _, best in words])
    arrays["last_right"] = np.array([best[-1] for _, best in words])
    return arrays


if __name__ == "__main__":
    import gpt2  # which lies beside this file

    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **make(gpt2.make()))
