"""How a step's estimated time grows from 8 chips to 512 when the batch grows with them: one picture, one table.

    python experiments/studies/weak_scaling.py [--size 6.7b] [--rows 4] [--fsdp 32] [--out FILE.png]

Plans GPT-3 (Brown et al., 2020) on v5p with so many rows a chip, fsdp over up to so many chips and data over the rest,
remat dots; needs libtpu (`pip install 'jaxnlp[tpu]'`). Efficiency: seconds a step on the fewest chips over those here.
"""

import argparse
import json
import pathlib
import subprocess
import sys

TOPOLOGIES = ("v5p:2x2x2", "v5p:2x4x4", "v5p:4x4x8", "v5p:8x8x8")


def planned(topology: str, size: str, rows: int, fsdp: int) -> dict:
    chips = 1
    for n in topology.partition(":")[2].split("x"):
        chips *= int(n)
    mesh = f"data={chips // min(chips, fsdp)},fsdp={min(chips, fsdp)}"
    command = [sys.executable, "-m", "jaxnlp", "plan", "gpt3", "--size", size, "--batch-size", str(rows * chips)]
    command += ["--topology", topology, "--mesh", mesh, "--model.remat", "dots", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) | {"chips": chips}


def picture(plans: list[dict], out: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("xla", "#1f5fa8"), ("roofline", "#9bb8d9")):
        first = plans[0]["step_seconds"][name]
        share = [100 * first / plan["step_seconds"][name] for plan in plans]
        axes.plot([plan["chips"] for plan in plans], share, marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2, nonpositive="clip")
    axes.set_xticks([plan["chips"] for plan in plans], [str(plan["chips"]) for plan in plans])
    axes.set_ylim(0, 115)
    axes.set_xlabel("chips")
    axes.set_title("weak scaling: efficiency in %, by estimate", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="6.7b")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--fsdp", type=int, default=32)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    plans = []
    print("chips   seconds a step: xla   roofline   efficiency: xla   MFU: xla   peak GiB", flush=True)
    for topology in TOPOLOGIES:
        plans.append(planned(topology, args.size, args.rows, args.fsdp))
        seconds, first = plans[-1]["step_seconds"], plans[0]["step_seconds"]
        efficiency = first["xla"] / seconds["xla"]
        print(
            f"{plans[-1]['chips']:5}{seconds['xla']:22.3f}{seconds['roofline']:11.3f}{efficiency:18.1%}"
            f"{plans[-1]['mfu']['xla']:11.1%}{plans[-1]['memory_bytes']['peak'] / 2**30:11.1f}",
            flush=True,
        )
    if args.out is not None:
        picture(plans, args.out)


if __name__ == "__main__":
    main()
