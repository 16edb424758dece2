"""What a language model makes of sets that it was not trained on: table 3 of Radford et al., 2019, two columns of it.

    python experiments/studies/zero_shot.py MODEL --data-dir DIR [--stride N] [--split test]

MODEL is a run's folder or a Hugging Face directory. Of WikiText-2, as people write it (data/wikitext.py), every token
is read with at least all but N of a row's tokens before it, by default half: perplexity of a token, bits per byte, and
perplexity of a word of the original, which compares with other tokenizers. Of LAMBADA (tasks/lambada.py) the last word.
"""

import argparse

import jaxnlp
from jaxnlp.data.sources import TFDS, open_source
from jaxnlp.data.wikitext import detokenized, n_words
from jaxnlp.tasks.lambada import LastWord
from jaxnlp.tasks.language_modeling import LanguageModeling


def wikitext(run: jaxnlp.Run, split: str, stride: int | None, data_dir: str) -> dict[str, float]:
    source = open_source(TFDS("wikitext2", split), data_dir)
    texts = [source[i]["text"] for i in range(len(source))]
    plain = [detokenized(text) for text in texts]
    length = min(run.config.n_positions, run.task.length)  # beyond what was trained, positions mean nothing
    task = LanguageModeling(length=length, stride=length // 2 if stride is None else stride)
    found = jaxnlp.evaluate(run, task=task, source=[{"text": text} for text in plain])
    bits_of_a_word = found["bits_per_byte"] * sum(len(text.encode()) for text in plain) / sum(map(n_words, texts))
    return found | {"word_perplexity": 2**bits_of_a_word}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    run = jaxnlp.load(args.model)
    lambada = jaxnlp.evaluate(run, task=LastWord(), source=TFDS("lambada", args.split), data_dir=args.data_dir)
    for name, found in (("wikitext2", wikitext(run, args.split, args.stride, args.data_dir)), ("lambada", lambada)):
        print(name, *(f"{metric} {value:.4g}" for metric, value in found.items()), sep="   ")


if __name__ == "__main__":
    main()
