"""What each lever of memory and speed costs and saves: one plan a row, each with one thing changed.

    python experiments/studies/levers.py [--topology v5e:4x4] [--batch-size 512]

GPT-2 124M with fsdp over all chips; needs libtpu (`pip install 'jaxnlp[tpu]'`). Seconds a step are XLA's estimate.
"""

import argparse
import json
import subprocess
import sys

BASE = {"model.dtype": "bfloat16", "model.remat": "dots", "model.scan": "True", "accumulate": "1"}
CHANGES = {
    "bfloat16, scanned, remat dots": {},
    "float32 products": {"model.dtype": "float32"},
    "remat none": {"model.remat": "none"},
    "remat full": {"model.remat": "full"},
    "unrolled": {"model.scan": "False"},
    "accumulate 4": {"accumulate": "4"},
    "bfloat16 first moments": {"optim.mu-dtype": "bfloat16"},
    "data instead of fsdp": {"mesh": "data={}"},
}


def planned(topology: str, batch_size: int, changes: dict[str, str]) -> dict:
    chips = 1
    for n in topology.partition(":")[2].split("x"):
        chips *= int(n)
    options = {"mesh": "fsdp={}", **BASE, **changes, "topology": topology, "batch-size": str(batch_size)}
    command = [sys.executable, "-m", "jaxnlp", "plan", "gpt2", "--json"]
    for name, value in options.items():
        flag = {"True": f"--{name}", "False": f"--{name.replace('model.', 'model.no-')}"}.get(value)
        command += [flag] if flag else [f"--{name}", value.format(chips)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch-size", type=int, default=512)
    args = parser.parse_args()
    print("| | peak GiB | seconds a step | compiled in |\n|---|---|---|---|", flush=True)
    for name, changes in CHANGES.items():
        plan = planned(args.topology, args.batch_size, changes)
        fits = "" if plan["fits"] else ", does not fit"
        seconds = plan["step_seconds"].get("xla")
        shown = "" if seconds is None else f"{seconds:.3f}"
        peak = plan["memory_bytes"]["peak"] / 2**30
        print(f"| {name} | {peak:.2f}{fits} | {shown} | {plan['compile_seconds']:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
