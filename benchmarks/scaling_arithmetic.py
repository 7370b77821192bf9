"""What GPUs would wait for, calculated: the table of docs/scaling.md. Nothing here is measured.

    python benchmarks/scaling_arithmetic.py

A step is on-policy: rollouts are sampled, one update trains on them, the weights go to the servers.
Each part is counted by what bounds it: training by matrix products, sampling by what is read from
memory, the rest by the bytes that travel.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU, by the data sheet of an H100 SXM, and what is assumed to be got of it."""

    flops: float = 989e12  # bfloat16, dense, per second
    memory_bytes: float = 3.35e12  # read per second
    link_bytes: float = 450e9  # per second and direction, to the GPUs of the same machine
    network_bytes: float = 50e9  # per second and direction, to other machines: 400 Gbit/s
    training_share: float = 0.4
    reading_share: float = 0.6


@dataclass(frozen=True)
class Model:
    """Qwen2.5-Math-1.5B."""

    parameters: float = 1.544e9
    cache_bytes: float = 28 * 2 * 2 * 128 * 2  # a token's keys and values, 28 layers of 2 heads


@dataclass(frozen=True)
class Layout:
    """So many trainers and samplers, and a rollout batch; lengths are uniform up to `longest`."""

    trainers: int
    samplers: int
    machines: int
    rollouts: int
    prompt: int = 150
    longest: int = 1024


@dataclass(frozen=True)
class Parts:
    """Seconds of a step: sampling, sending the weights, forward and backward, adding gradients."""

    sampling: float
    sending: float
    training: float
    reducing: float

    def idle(self, overlapping: bool) -> tuple[float, float, float]:
        """Seconds of a step, and the shares of it in which trainers and samplers wait: one after
        the other, or `overlapping`, the samplers one batch ahead."""
        sample, train = self.sampling, self.training + self.reducing
        step = self.sending + (max(sample, train) if overlapping else sample + train)
        return step, 1 - train / step, 1 - sample / step


def parts_of(layout: Layout, gpu: Gpu, model: Model) -> Parts:
    """Bounds from below, but for the two shares that are assumed."""
    rows, longest = layout.rollouts / layout.samplers, layout.longest
    # Token t is sampled for the rows that are longer: rows (1 - t / longest), of prompt + t tokens.
    cached = rows * (layout.prompt * longest / 2 + longest**2 / 6)
    read = longest * 2 * model.parameters + cached * model.cache_bytes
    tokens = layout.rollouts * (layout.prompt + longest / 2)
    between = gpu.link_bytes if layout.machines == 1 else gpu.network_bytes
    n = layout.trainers
    return Parts(
        sampling=read / (gpu.memory_bytes * gpu.reading_share),
        sending=2 * model.parameters / between,
        training=6 * model.parameters * tokens / (n * gpu.flops * gpu.training_share),
        # A ring passes float32 gradients round twice, but for the own part.
        reducing=2 * (n - 1) / n * 4 * model.parameters / between,
    )


LAYOUTS = {
    "2 (1 + 1)": Layout(1, 1, 1, 256),
    "8 (6 + 2)": Layout(6, 2, 1, 256),
    "8 (6 + 2), more rollouts": Layout(6, 2, 1, 1024),
    "64 (48 + 16)": Layout(48, 16, 8, 1024),
    "64 (48 + 16), more rollouts": Layout(48, 16, 8, 8192),
}


def rows() -> list[list[str]]:
    """The table: a header, and a row for each layout."""
    header = ["GPUs (train + sample)", "rollouts", "sampling", "weights", "training", "gradients"]
    table = [[*header, "in turns: step, idle", "overlapping: step, idle"]]
    for name, layout in LAYOUTS.items():
        parts = parts_of(layout, Gpu(), Model())
        cells = [f"{part:.3f} s" for part in vars(parts).values()]
        for overlapping in (False, True):
            step, trainers, samplers = parts.idle(overlapping)
            cells.append(f"{step:.2f} s, {trainers:.0%} and {samplers:.0%}")
        table.append([name, f"{layout.rollouts:,}", *cells])
    return table


if __name__ == "__main__":
    from trl_r1zero.evaluation.markdown import table as as_table

    header, *body = rows()
    print("\n".join(as_table(header, body)))
