"""How a step's estimated time grows from 8 chips to 512 when the batch grows with them: one picture, one table.

    python experiments/studies/weak_scaling.py [--size 6.7b] [--rows 4] [--fsdp 32] [--out FILE.png]

Plans GPT-3 (Brown et al., 2020) with dense attention on v5p with so many rows a chip, fsdp over up to so many chips and
data over the rest, remat dots; needs libtpu (`pip install 'jaxnlp[tpu]'`). Efficiency: seconds a step on the fewest
chips over those here.
"""

import argparse
import pathlib

from jaxnlp import cli

TOPOLOGIES = {8: "v5p:2x2x2", 32: "v5p:2x4x4", 128: "v5p:4x4x8", 512: "v5p:8x8x8"}


def picture(plans: dict, out: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("xla", "#1f5fa8"), ("roofline", "#9bb8d9")):
        seconds = [plan.step_seconds[name] for plan in plans.values()]
        axes.plot(list(plans), [100 * seconds[0] / s for s in seconds], marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2, nonpositive="clip")
    axes.set_xticks(list(plans), list(map(str, plans)))
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
    plans = {}
    print("chips   seconds a step: xla   roofline   efficiency: xla   MFU: xla   peak GiB", flush=True)
    for chips, topology in TOPOLOGIES.items():
        fsdp = min(chips, args.fsdp)
        asked = ["gpt3", "--size", args.size, "--batch-size", str(args.rows * chips), "--model.remat", "dots"]
        asked += ["--model.windows", "None"]
        [plan], _ = cli.planned([*asked, "--topology", topology, "--mesh", f"data={chips // fsdp},fsdp={fsdp}"])
        plans[chips], seconds, first = plan, plan.step_seconds, next(iter(plans.values()), plan).step_seconds
        print(
            f"{chips:5}{seconds['xla']:22.3f}{seconds['roofline']:11.3f}{first['xla'] / seconds['xla']:18.1%}"
            f"{plan.mfu['xla']:11.1%}{plan.memory_bytes['peak'] / 2**30:11.1f}",
            flush=True,
        )
    if args.out is not None:
        picture(plans, args.out)


if __name__ == "__main__":
    main()
