"""Loss against parameters and data, and the law that fits it (Hoffmann et al., 2022, eq. 2 and appendix D.3).

    python experiments/studies/scaling_laws.py [--data-dir DIR] [--workdir runs/scaling_laws] [--steps 150,300,600]
        [--widths 16,32,48,64,96,128] [--budget 2e14] [--out FILE.png]

Trains quickstart_pretrain at each width for each number of steps, every run with a schedule of its own, or goes on
where it was stopped. To the losses on the validation part fits

    L(N, D) = E + A / N^alpha + B / D^beta        in nats a token, Huber's loss of log L with delta = 1e-3

N being all parameters (the table of words is the output's too) and D the tokens read, and prints what it would choose
for a budget of C = 6 N D floating point operations:

    N = G (C / 6)^(beta / (alpha + beta)),  D = (C / 6) / N,  G = (alpha A / (beta B))^(1 / (alpha + beta))

python_docs has about 600,000 tokens: the longest runs read it twice, which counts as new data here.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import runpy
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import huber

import jaxnlp
from jaxnlp.training.experiment import Experiment

EXPERIMENT = pathlib.Path(__file__).parents[1] / "quickstart_pretrain.py"
LAYERS = {16: 2, 32: 2, 48: 3, 64: 3, 96: 4, 128: 4}
DELTA = 1e-3  # Hoffmann et al., appendix D.3
N_STARTS = 20  # of the grid, from which the fit goes on


class Law(NamedTuple):
    """E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def __call__(self, N, D):
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best(self, C: float) -> tuple[float, float]:
        """N and D of the least loss with C = 6 N D."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = G * (C / 6) ** (self.beta / (self.alpha + self.beta))
        return N, C / 6 / N


def fit(N: Float[np.ndarray, " n"], D: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> Law:
    """The best of L-BFGS from the best of a grid, over e = log E, a = log A, b = log B and the exponents."""
    log_N, log_D, log_loss = map(np.log, (N, D, loss))

    def objective(x):
        e, a, alpha, b, beta = x
        terms = np.stack([np.full_like(log_N, e), a - alpha * log_N, b - beta * log_D])
        each = np.logaddexp.reduce(terms)
        error, shares = each - log_loss, np.exp(terms - each)
        slope = np.clip(error, -DELTA, DELTA)
        gradient = [shares[0], shares[1], -shares[1] * log_N, shares[2], -shares[2] * log_D]
        return huber(DELTA, error).sum() / DELTA**2, np.array([(slope * g).sum() for g in gradient]) / DELTA**2

    starts = itertools.product((-1.0, 0.0, 1.0), (0.0, 5.0, 10.0), (0.2, 0.5, 1.0), (0.0, 5.0, 10.0), (0.2, 0.5, 1.0))
    starts = sorted(starts, key=lambda x: objective(x)[0])[:N_STARTS]
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-10}
    fits = [minimize(objective, x, jac=True, method="L-BFGS-B", options=options) for x in starts]
    found = min(fits, key=lambda one: one.fun)
    e, a, alpha, b, beta = found.x
    return Law(*map(float, (np.exp(e), np.exp(a), alpha, np.exp(b), beta)))


def experiment(width: int, steps: int) -> Experiment:
    """quickstart_pretrain at another width; evaluated once, at its end."""
    made = runpy.run_path(str(EXPERIMENT))["experiment"]()
    model = dataclasses.replace(made.model, n_layers=LAYERS[width], d_model=width, n_heads=width // 16)
    once = {"evaluate_every": 1.0, "save_every": 1.0, "log_every": 0.1}
    return dataclasses.replace(made, model=model, steps=steps, **once)


def measured(folder: pathlib.Path) -> float:
    """The last validation loss."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if line["split"] == "validation"][-1]


def picture(points: list[tuple[int, int, float]], law: Law, out: pathlib.Path) -> None:
    """Loss against parameters, a line for each amount of data, with the law's; and against compute."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sizes, amounts = (sorted({point[i] for point in points}) for i in (0, 1))
    dense = np.geomspace(sizes[0], sizes[-1], 100)
    for D, colour in zip(amounts, ("#e0a888", "#b0552f", "#1f5fa8", "#7a828c", "#2e2e2e"), strict=False):
        N, loss = np.array([(n, one) for n, d, one in points if d == D]).T
        for axes, of in ((left, lambda n: n), (right, lambda n: 6 * n * D)):  # noqa: B023
            axes.plot(of(dense), law(dense, D), color=colour, linewidth=0.8)
            axes.plot(of(N), loss, "o", color=colour, label=f"{D / 1e6:.2g} M tokens")
    budgets = np.geomspace(6 * sizes[0] * amounts[0], 6 * sizes[-1] * amounts[-1], 100)
    right.plot(budgets, [law(*law.best(C)) for C in budgets], color="#2e2e2e", linestyle="--", linewidth=0.8)
    for axes, name in ((left, "parameters"), (right, "floating point operations, 6 N D")):
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("Validation loss, nats a token", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/scaling_laws"))
    parser.add_argument("--steps", default="150,300,600")
    parser.add_argument("--widths", default=",".join(map(str, LAYERS)))
    parser.add_argument("--budget", type=float, default=2e14, help="floating point operations, 6 N D")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    points = []
    print(f"{'width':>5}{'layers':>8}{'parameters':>12}{'tokens':>12}{'loss':>8}{'the law':>9}")
    for width, steps in itertools.product(map(int, args.widths.split(",")), map(int, args.steps.split(","))):
        made = experiment(width, steps)
        folder = args.workdir / f"{width}-{steps}"
        run = jaxnlp.train(made, folder, data_dir=args.data_dir)
        n_parameters = sum(x.size for x in jax.tree.leaves(run.params))
        points.append((n_parameters, steps * made.batch_size * made.task.length, measured(folder)))
        print(f"{width:5}{LAYERS[width]:8}{points[-1][0]:12,}{points[-1][1]:12,}{points[-1][2]:8.4f}", flush=True)
    law = fit(*np.array(points, np.float64).T)
    print("".join(f"{'':25}{N:12,}{D:12,}{loss:8.4f}{law(N, D):9.4f}\n" for N, D, loss in points), end="")
    print(f"L(N, D) = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}")
    N, D = law.best(args.budget)
    print(f"{args.budget:.3g} operations: {N:,.0f} parameters, {D:,.0f} tokens, loss {law(N, D):.4f}")
    if args.out is not None:
        picture(points, law, args.out)


if __name__ == "__main__":
    main()
