"""What each lever of memory and speed costs and saves: one plan a row, each with one thing changed.

    python experiments/studies/levers.py [--topology v5e:4x4] [--batch-size 512]

GPT-2 124M with fsdp over all chips; needs libtpu (`pip install 'jaxnlp[tpu]'`). Seconds a step are XLA's estimate.
"""

import argparse

from jaxnlp import cli

BASE = {"mesh": "auto", "model.dtype": "bfloat16", "model.remat": "dots", "accumulate": "1"}
CHANGES = {
    "bfloat16, scanned, remat dots": {},
    "float32 products": {"model.dtype": "float32"},
    "remat none": {"model.remat": "none"},
    "remat full": {"model.remat": "full"},
    "unrolled": {"model.no-scan": None},
    "accumulate 4": {"accumulate": "4"},
    "bfloat16 first moments": {"optim.mu-dtype": "bfloat16"},
    "data instead of fsdp": {"mesh": "pmap"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch-size", type=int, default=512)
    args = parser.parse_args()
    print("| | peak GiB | seconds a step | compiled in |\n|---|---|---|---|", flush=True)
    for name, changes in CHANGES.items():
        options = {**BASE, **changes, "topology": args.topology, "batch-size": str(args.batch_size)}
        flags = [part for option, value in options.items() for part in (f"--{option}", value) if part is not None]
        [plan], _ = cli.planned(["gpt2", *flags])
        fits = "" if plan.fits else ", does not fit"
        seconds = plan.step_seconds.get("xla")
        shown = "" if seconds is None else f"{seconds:.3f}"
        compiled = "" if plan.compile_seconds is None else f"{plan.compile_seconds:.0f} s"
        print(f"| {name} | {plan.memory_bytes['peak'] / 2**30:.2f}{fits} | {shown} | {compiled} |", flush=True)


if __name__ == "__main__":
    main()
