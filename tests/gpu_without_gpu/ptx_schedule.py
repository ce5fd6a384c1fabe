"""Who runs next, and when what is copied asynchronously arrives: orders that a GPU may take and that break races."""

import numpy as np

ORDERS = ("random", "round robin", "ahead", "reversed")


class Schedule:
    """``order`` of the warps and ``arrival`` (random, late or early) of asynchronous writes, drawn from ``seed``.

    ``round robin``: a block of instructions each; ``ahead``: one thread block, drawn by chance, as far as it can go
    before the others; ``reversed``: the last warp of the last block first.
    """

    def __init__(self, order="random", seed=0, arrival=None):
        if order not in ORDERS:
            raise ValueError(f"schedule {order!r}: expected one of {', '.join(ORDERS)}")
        self.order, self.rng = order, np.random.default_rng(seed)
        self.arrival = arrival or ("random", "late", "early")[int(self.rng.integers(3))]
        self.early = self.arrival == "early"

    def clusters(self, starts):
        """In which order clusters that are not resident together run."""
        if self.order == "reversed":
            return starts[::-1]
        return starts if self.order == "round robin" else [starts[i] for i in self.rng.permutation(len(starts))]

    def begin(self, machine):
        blocks = self.rng.permutation(len(machine.ctas)) if self.order == "ahead" else range(len(machine.ctas))
        place = {cta.number: k for cta, k in zip(machine.ctas, blocks)}
        warps = sorted(machine.warps, key=lambda w: (place[w.cta.number], w.index), reverse=self.order == "reversed")
        self.rank = {id(w): k for k, w in enumerate(warps)}
        self.last = -1

    def next(self, ready):
        if self.order == "random":
            return ready[int(self.rng.integers(len(ready)))]
        if self.order == "round robin":
            after = [w for w in ready if self.rank[id(w)] > self.last]
            w = min(after or ready, key=lambda w: self.rank[id(w)])
            self.last = self.rank[id(w)]
            return w
        return min(ready, key=lambda w: self.rank[id(w)])

    def burst(self):
        """How many blocks of instructions a turn has."""
        return {"random": int(self.rng.integers(1, 40)) if self.order == "random" else 0, "round robin": 1}.get(
            self.order, 200)

    def completes(self):
        return self.arrival == "random" and self.rng.random() < 0.5

    @staticmethod
    def may_complete(operation):
        """A copy that only its own warp waits for, by group, is complete when it does so."""
        return operation.lanes is None

    def operation(self, pending):
        return pending[int(self.rng.integers(len(pending)))] if pending else None
