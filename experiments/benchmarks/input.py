"""What the input pipeline gives by itself: tokens/s of one core's worth of batches, beside what a step takes.

    python experiments/benchmarks/input.py [--batches 200] [--length 1024] [--rows 32]

Tokenises `python_docs` (once; kept), then makes packed windows one after another, as training does but without it.
"""

import argparse
import statistics
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--data-dir")
    args = parser.parse_args()

    from jaxnlp.data.sources import TFDS
    from jaxnlp.data.tokenizers import ByteBPE
    from jaxnlp.models import gpt
    from jaxnlp.tasks.language_modeling import LanguageModeling
    from jaxnlp.training import loop
    from jaxnlp.training.experiment import Data, Experiment
    from jaxnlp.training.folder import Folder

    experiment = Experiment(
        model=gpt.VARIANTS["gpt2"],
        task=LanguageModeling(length=args.length),
        data=Data(train=TFDS("python_docs", "train")),
        tokenizer=ByteBPE(2048),
        steps=args.batches,
        batch_size=args.rows,
    )
    _, tokenizer = loop.settle(experiment, Folder("/nowhere"), args.data_dir)
    batches, _ = loop.batches_for(experiment, tokenizer, args.data_dir)
    batches(0)
    seconds = []
    for step in range(args.batches):
        start = time.perf_counter()
        batches(step)
        seconds.append(time.perf_counter() - start)
    tokens = args.rows * args.length
    print(f"{tokens / statistics.median(seconds):,.0f} tokens/s of one thread, {tokens:,} a batch")


if __name__ == "__main__":
    main()
