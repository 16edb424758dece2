"""BLEU of a run that translates, as sacreBLEU counts it and as papers on Multi30k do: of lower-cased Moses tokens.

    pip install sacremoses
    python experiments/studies/bleu.py RUN --data-dir DIR [--split test_2016] [--ema] [--average N] [--beams N]
        [--length-penalty ALPHA]

The papers' figure is multi-bleu.perl's, of texts that are tokenised already: here sacreBLEU's without a tokenizer, of
what sacremoses makes of both sides. Prints both figures and chrF, with their signatures.
"""

import argparse
import dataclasses

import jaxnlp
from jaxnlp.data.sources import open_source
from jaxnlp.tasks.translation import scores


def tokenised(found: list[str], references: list[str], language: str) -> tuple[float, str]:
    """(BLEU, its signature)."""
    import sacrebleu
    import sacremoses

    moses = sacremoses.MosesTokenizer(language)
    tokens = lambda texts: [moses.tokenize(text.lower(), return_str=True, escape=False) for text in texts]  # noqa: E731
    bleu = sacrebleu.BLEU(tokenize="none", force=True)
    return bleu.corpus_score(tokens(found), [tokens(references)]).score, str(bleu.get_signature())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--split", default="test_2016")
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--average", type=int, default=1)
    parser.add_argument("--beams", type=int)
    parser.add_argument("--length-penalty", type=float)
    args = parser.parse_args()
    run = jaxnlp.load(args.run, ema=args.ema, average=args.average)
    asked = {"n_beams": args.beams, "length_penalty": args.length_penalty}
    task = dataclasses.replace(run.task, **{name: value for name, value in asked.items() if value is not None})
    source = open_source(dataclasses.replace(run.experiment.data.validation, split=args.split), args.data_dir)
    pairs = [task.texts(source[i]) for i in range(len(source))]
    found = [best["translation"] for best in run.predict([text for text, _ in pairs], task=task)]
    references = [text for _, text in pairs]
    _, table = scores(found, references)
    rows = (*table.rows, ("bleu, lower-cased tokens", *tokenised(found, references, task.target)))
    for name, value, signature in rows:
        print(f"{name:26}{value:9.4f}   {signature}")


if __name__ == "__main__":
    main()
