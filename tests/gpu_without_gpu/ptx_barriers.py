"""Barriers of a block, by name or not, and of a cluster."""

import numpy as np

from .ptx_races import Published
from .ptx_types import PtxError


class Barrier:
    """One of the sixteen of a block: who is there, and how many threads it counts (None: all of the block)."""

    def __init__(self):
        self.count, self.entries = None, []


class Barriers:
    """Part of the machine."""

    def c_bar(self, w, x, m, here, taken, end):
        parts = x.parts
        if "cluster" in parts:
            self.cluster_barrier(w, x, taken)
            self.jump(w, m, here, here, end, end)
            w.remask()
            return
        self.jump(w, m, here, here, end, end)
        if "warp" in parts:
            return
        operands = [self._scalar(w, o, taken) if o[0] in "#0123456789" else o for o in x.ops]
        if "red" in parts:
            result, number, count = operands_of_reduction(x, operands)
        else:
            result, number, count = None, operands[0] if operands else 0, operands[1] if len(operands) > 1 else None
        if not 0 <= number < 16 or (count is not None and (count % 32 or not count)):
            raise PtxError(f"barrier {number} of {count} threads")
        if taken.sum() != w.alive.sum() and ("aligned" in parts or parts[0] == "bar"):
            raise PtxError(f"{'.'.join(parts)}: the warp has not converged, {int(taken.sum())} lanes are here")
        barrier = w.cta.barriers.setdefault(number, Barrier())
        if barrier.count not in (None, count) and count is not None and barrier.entries:
            raise PtxError(f"barrier {number} is waited for with {barrier.count} and with {count} threads")
        barrier.count = count
        barrier.entries.append((w, taken, "arrive" not in parts, x if result is not None else None))
        if "arrive" not in parts:
            w.apart()
            w.waiting = w.waiting | taken
            w.waits_for = f"barrier {number}"
            w.remask()
        self.settle(w.cta, number)

    c_barrier = c_bar

    def _scalar(self, w, operand, taken):
        if operand[0] != "#":
            return int(operand, 0)
        value = w.R[int(operand[1:])]
        return operand if value.dtype == bool else int(value[taken.argmax()])

    def settle(self, cta, number):
        """Lets the threads at a barrier go once all that it counts are there."""
        barrier = cta.barriers[number]
        here = sum(int(lanes.sum()) for _, lanes, _, _ in barrier.entries)
        if not here or here < (cta.threads() if barrier.count is None else barrier.count):
            return
        if barrier.count is not None and here > barrier.count:
            raise PtxError(f"{here} threads at barrier {number} of {barrier.count}")
        entries, barrier.entries = barrier.entries, []
        self.events += 1
        if self.races:
            joined = np.maximum.reduce([w.clock_ for w, *_ in entries])
        reduce_values(self, entries)
        for w, lanes, waits, _ in entries:
            if waits:
                w.waiting = w.waiting & ~lanes
                w.waits_for = ""
                w.remask()
                if self.races:
                    w.clock_ = joined.copy()
        if self.races:
            for w in {id(w): w for w, *_ in entries}.values():
                w.clock_[:2, w.slot] += 1

    def cluster_barrier(self, w, x, lanes):
        cluster, relaxed = w.cta.cluster, "relaxed" in x.parts
        if "aligned" in x.parts and lanes.sum() != w.alive.sum():
            raise PtxError(f"{'.'.join(x.parts)}: the warp has not converged")
        if "arrive" in x.parts:
            if (w.cluster_phase[lanes] >= 0).any():
                raise PtxError("barrier.cluster.arrive a second time without a wait")
            w.cluster_phase[lanes] = cluster.phase
            cluster.arrived += int(lanes.sum())
            if self.races and not relaxed:
                cluster.published[cluster.phase].add(w.clock_, w.cta, "cluster")
                w.clock_[:2, w.slot] += 1
        else:
            if (w.cluster_phase[lanes] < 0).any():
                raise PtxError("barrier.cluster.wait without an arrive")
            w.apart()
            w.waiting = w.waiting | lanes
            w.waits_for = "cluster barrier"
        self.settle_cluster(cluster)

    def settle_cluster(self, cluster):
        if cluster.arrived and cluster.arrived >= sum(cta.threads() for cta in cluster.ctas):
            cluster.phase += 1
            cluster.arrived = 0
            cluster.published[cluster.phase] = Published()
            self.events += 1
        for cta in cluster.ctas:
            for w in cta.warps:
                free = w.waiting & (w.cluster_phase >= 0) & (w.cluster_phase < cluster.phase)
                if not free.any() or w.waits_for != "cluster barrier":
                    continue
                if self.races:
                    for clock in cluster.published[int(w.cluster_phase[free][0])].visible(cta, "cluster"):
                        np.maximum(w.clock_, clock, out=w.clock_)
                w.cluster_phase[free] = -1
                w.waiting = w.waiting & ~free
                w.waits_for = ""
                w.remask()


def operands_of_reduction(x, operands):
    """``bar.red.<op> d, a{, b}, p``."""
    return operands[0], operands[1], operands[2] if len(operands) == 4 else None


def reduce_values(machine, entries):
    """Gives each thread of a ``bar.red`` the number of threads whose predicate holds, or whether all or any do."""
    parts = [(w, lanes, x, ~w.R[int(x.ops[-1].lstrip("!")[1:])] if x.ops[-1][0] == "!" else w.R[int(x.ops[-1][1:])])
             for w, lanes, _, x in entries if x is not None]
    if not parts:
        return
    values = np.concatenate([p[lanes] for _, lanes, _, p in parts])
    for w, lanes, x, _ in parts:
        to = int(x.ops[0][1:])
        value = values.sum() if "popc" in x.parts else values.all() if "and" in x.parts else values.any()
        w.R[to] = np.where(lanes, value, w.R[to]).astype(w.R[to].dtype)
