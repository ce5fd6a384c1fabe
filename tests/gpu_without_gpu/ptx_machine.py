"""The blocks and warps of a launch, the barriers between them, and who runs next."""

import numpy as np

from .ptx_async import Asynchronous
from .ptx_barriers import Barriers
from .ptx_code import initial_registers
from .ptx_memory import Memory, Views
from .ptx_races import Published, Race, Races
from .ptx_types import U8, U32, U64, PtxError
from .ptx_warp import WarpCollectives

FRUITLESS = 64
"""Rounds in which every warp has found nothing new before the launch counts as hung."""


class Cluster:
    def __init__(self, number):
        self.number, self.ctas = number, []
        self.phase, self.arrived, self.published = 0, 0, {0: Published()}


class Cta:
    """A block: its rank in the cluster, where its shared memory begins, its barriers."""

    def __init__(self, number, rank, base, cluster):
        self.number, self.rank, self.base, self.cluster = number, rank, U64(base), cluster
        self.warps, self.bars, self.barriers, self.gone = [], {}, {}, False

    def threads(self):
        return sum(int(w.alive.sum()) for w in self.warps)


class Warp:
    """Registers of 32 lanes and where they are: ``pc`` and ``mask`` while together, else ``pcs``."""

    def __init__(self, K, cta, index, slot, threads):
        self.K, self.cta, self.index, self.slot = K, cta, index, slot
        self.alive = np.arange(32 * index, 32 * index + 32) < threads
        self.waiting = np.zeros(32, bool)
        self.pc, self.pcs, self.at = 0, None, 0
        self.returns = {}
        self.R = initial_registers(K.code)
        # What the cluster barrier has had of each lane: the phase arrived at, or -1.
        self.cluster_phase = np.full(32, -1)
        self.stalled, self.polled, self.last_poll, self.waits_for = None, False, None, ""
        self.commits, self.bulk_commits, self.unwaited = np.zeros(32, int), np.zeros(32, int), []
        size = K.local_size
        self.lane_base = np.arange(32, dtype=U64) * U64(size)
        self.local = Views(np.full(max(32 * size, 32), 0xFF, U8))
        self.seen, self.fenced, self.agent_time = None, {}, 0
        self.remask()

    def remask(self):
        """After lanes have come or gone."""
        self.running = self.alive & ~self.waiting
        self.mask = None if self.running.all() else self.running
        self.ready = bool(self.running.any())
        if self.pcs is not None and self.ready:
            places = self.pcs[self.running]
            if (places == places[0]).all() and not self.waiting.any():
                self.pc, self.pcs = int(places[0]), None

    def apart(self):
        if self.pcs is None:
            self.pcs = np.full(32, self.pc)
        return self.pcs

    def clock(self):
        return np.full(32, self.K.issued, U64)

    def name(self):
        return f"warp {self.index} of block {self.cta.number}"


class Machine(Memory, Asynchronous, WarpCollectives, Barriers):
    """The clusters of a launch that are resident together."""

    def __init__(self, code, early, races, max_issue):
        WarpCollectives.__init__(self)
        self.code, self.early, self.max_issue = code, early, max_issue
        self.local_size = -(-code.local_size // 16) * 16
        self.issued = self.events = 0
        self.pending, self.published = [], {}
        self.ctas, self.warps = [], []
        self.races = races

    def populate(self, numbers, grid, block, cluster, bases, shared_size):
        """Blocks ``numbers`` (the first of each cluster is a multiple of its size) with their warps."""
        threads = int(np.prod(block))
        size = int(np.prod(cluster))
        self.shared_end = U64(shared_size)
        across = [g // c for g, c in zip(grid, cluster)]
        per_cta = -(-threads // 32)
        if self.races:
            self.races = Races(self.arena.size, len(numbers) * per_cta)
        for place, number in enumerate(numbers):
            rank = number % size
            if rank == 0:
                where = Cluster(number // size)
            where.ctas.append(cta := Cta(number, rank, bases[place], where))
            cta.warps = [Warp(self, cta, i, place * per_cta + i, threads) for i in range(per_cta)]
            in_cluster = _unravel(rank, cluster)
            of_cluster = _unravel(number // size, across)
            special = {"%cluster_ctarank": rank, "%cluster_nctarank": size, "%smid": place, "%nsmid": len(numbers),
                       "%is_explicit_cluster": int(size > 1), "%nwarpid": per_cta, "%gridid": 0,
                       "%dynamic_smem_size": self.dynamic, "%total_smem_size": shared_size}
            place_in_grid = [c * n + r for c, n, r in zip(of_cluster, cluster, in_cluster)]
            for values, name in ((grid, "nctaid"), (block, "ntid"), (in_cluster, "cluster_ctaid"),
                                 (across, "nclusterid"), (cluster, "cluster_nctaid"), (of_cluster, "clusterid"),
                                 (place_in_grid, "ctaid")):
                special |= {f"%{name}.{axis}": value for axis, value in zip("xyz", values)}
            special = {name: np.full(32, value, U32) for name, value in special.items()}
            for w in cta.warps:
                thread = np.arange(32 * w.index, 32 * w.index + 32)
                lane = np.arange(32, dtype=U32)
                one = U32(1) << lane
                w.S = special | {
                    "%tid.x": (thread % block[0]).astype(U32), "%tid.y": (thread // block[0] % block[1]).astype(U32),
                    "%tid.z": (thread // block[0] // block[1]).astype(U32), "%laneid": lane,
                    "%warpid": np.full(32, w.index, U32), "%lanemask_eq": one, "%lanemask_lt": one - U32(1),
                    "%lanemask_le": one | (one - U32(1)), "%lanemask_gt": ~(one | (one - U32(1))),
                    "%lanemask_ge": ~(one - U32(1))}
                if self.races:
                    w.clock_, w.agent = self.races.clock(w.slot), self.races.warps + w.slot
            self.ctas.append(cta)
            self.warps += cta.warps



    def run(self, schedule):
        """To the end, or a PtxError."""
        fruitless = seen = 0
        while True:
            left = [w for w in self.warps if w.alive.any()]
            if not left:
                break
            ready = [w for w in left if w.ready and (w.stalled is None or w.stalled != self.events)]
            if self.events != seen:
                fruitless, seen = 0, self.events
            if ready:
                self.turn(schedule.next(ready), schedule.burst())
                if self.pending and schedule.completes():
                    self.finish(schedule)
            elif any(schedule.may_complete(o) for o in self.pending):
                self.finish(schedule)
            elif fruitless < FRUITLESS and any(w.ready for w in left):
                # They may do something else than wait: let each of them try again.
                fruitless += 1
                for w in left:
                    w.stalled = None
            else:
                raise PtxError("deadlock:\n" + "\n".join(self.whereabouts(w) for w in left))
        for operation in [o for o in self.pending if o.kind != "cp.async" and schedule.may_complete(o)]:
            self.guarded(operation.w, self.complete, operation)

    def finish(self, schedule):
        operation = schedule.operation([o for o in self.pending if schedule.may_complete(o)])
        if operation:
            self.guarded(operation.w, self.complete, operation)

    def whereabouts(self, w):
        lanes = int(w.waiting.sum()) or int(w.running.sum())
        x = self.code.instructions[w.at]
        return f"  {w.name()}: {lanes} lanes at [{w.at}] {x.text}" + (f" ({w.waits_for})" if w.waits_for else "")

    def guarded(self, w, function, *arguments):
        """Errors name the instruction and the warp."""
        try:
            return function(*arguments)
        except Race as race:
            other = race.slot % self.races.warps
            how = ", asynchronously" if race.slot >= self.races.warps else ""
            by = self.warps[other].name() + how
            what = f", at [{race.at}] {self.code.instructions[race.at].text}" if race.at is not None else ""
            words = f"race: {race.what} by {by}{what}: nothing orders the two{race.how}"
            raise PtxError(words + self.place(w)) from None
        except PtxError as error:
            raise PtxError(f"{error}{self.place(w)}") from None

    def place(self, w):
        return f"\n  at [{w.at}] {self.code.instructions[w.at].text}\n  {w.name()}"

    def turn(self, w, blocks):
        w.stalled = None
        code = self.code
        for _ in range(blocks):
            if not w.ready:
                return
            if w.pcs is None:
                start, m = w.pc, w.mask
            else:
                start = int(w.pcs[w.running].min())
                m = w.running & (w.pcs == start)
            block = code.block(start)
            function = block.functions[m is not None] or code.function(block, m is not None)
            self.issued += block.end - start
            if self.issued > self.max_issue:
                raise PtxError(f"more than {self.max_issue} instructions: livelock?{self.place(w)}")
            try:
                function(w) if m is None else function(w, m)
                if block.control is None:
                    self.go(w, m, block.end)
                else:
                    w.at = block.end - 1
                    self.control(w, block.control, m, block.end)
            except PtxError as error:
                self.guarded(w, _raise, error)
            if w.polled:
                w.polled = False
                if w.last_poll == (w.at, self.events):
                    w.stalled = self.events
                w.last_poll = (w.at, self.events)
            if w.stalled is not None:
                return

    def go(self, w, m, to):
        if w.pcs is None:
            w.pc = to
        else:
            w.pcs[m] = to
            w.remask()

    def control(self, w, x, m, end):
        here = w.running if m is None else m
        if x.pred is not None:
            p = w.R[x.pred]
            taken = here & (~p if x.neg else p)
        else:
            taken = here
        head = x.parts[0]
        if head == "bra":
            self.jump(w, m, here, taken, x.targets[0], end)
            return
        if not taken.any():
            self.go(w, m, end)
            return
        getattr(self, "c_" + head)(w, x, m, here, taken, end)

    def jump(self, w, m, here, taken, to, end):
        if taken is here or (taken == here).all():
            self.go(w, m, to)
        elif not taken.any():
            self.go(w, m, end)
        else:
            pcs = w.apart()
            pcs[here] = end
            pcs[taken] = to
            w.remask()

    def c_brx(self, w, x, m, here, taken, end):
        index = w.R[int(x.ops[0][1:])]
        if (index[taken] >= len(x.targets)).any():
            raise PtxError("brx.idx: index out of range")
        pcs = w.apart()
        pcs[here] = end
        pcs[taken] = np.array(x.targets)[index[taken]]
        w.remask()

    def c_call(self, w, x, m, here, taken, end):
        names = [o for o in x.ops if o[0] != "("]
        groups = [o.strip("() ").split(",") for o in x.ops if o[0] == "("]
        target = names[0]
        if target in ("__assertfail", "__assert_fail"):
            raise PtxError("an assertion of the kernel fails")
        if target == "vprintf":
            self.go(w, m, end)
            return
        if target not in self.code.functions:
            raise PtxError("a call of " + target)
        first, function = self.code.functions[target]
        results = groups[0] if len(groups) == 2 or (groups and x.ops[0][0] == "(") else []
        arguments = groups[-1] if len(groups) == 2 or (groups and x.ops[0][0] != "(") else []
        for variable, argument in zip(function.params, arguments):
            self._copy_local(w, self.code.local[argument.strip()], self.code.local[variable.name], variable.size, taken)
        back = w.returns.setdefault(function.name, (np.full(32, -1), {}))
        if (back[0][taken] >= 0).any():
            raise PtxError("recursion is not modelled")
        back[0][taken] = end
        back[1][end] = [(self.code.local[v.name], self.code.local[r.strip()], v.size)
                        for v, r in zip(function.results, results)]
        self.jump(w, m, here, taken, first, end)

    @staticmethod
    def _copy_local(w, source, to, size, lanes):
        data = w.local.data[: len(w.lane_base) * w.K.local_size].reshape(32, -1)
        data[lanes, to : to + size] = data[lanes, source : source + size]

    def c_ret(self, w, x, m, here, taken, end):
        for function, (back, copies) in w.returns.items():
            first, body = self.code.functions[function]
            if first <= w.at < first + len(body.instructions):
                pcs = w.apart()
                pcs[here] = end
                pcs[taken] = back[taken]
                for to in set(back[taken].tolist()):
                    for source, place, size in copies[to]:
                        self._copy_local(w, source, place, size, taken & (back == to))
                back[taken] = -1
                w.remask()
                return
        self.c_exit(w, x, m, here, taken, end)

    def c_exit(self, w, x, m, here, taken, end):
        if (taken != here).any():
            pcs = w.apart()
            pcs[here] = end
        w.alive = w.alive & ~taken
        w.remask()
        self.events += 1
        if not any(each.alive.any() for each in w.cta.warps):
            self.leave(w.cta)
        for number in list(w.cta.barriers):
            self.settle(w.cta, number)
        self.settle_cluster(w.cta.cluster)

    def leave(self, cta):
        """The last thread of a block has exited: nobody may use its shared memory from now on."""
        cta.gone = True
        if self.races:
            clock = np.maximum.reduce([w.clock_ for w in cta.warps])
            for copy in self.pending + [each for w in cta.warps for each in w.unwaited]:
                # A copy into the block that nobody waits for is over when the block is.
                if copy.w.cta is cta and copy.kind == "cp.async":
                    clock[:, copy.w.agent] = np.maximum(clock[:, copy.w.agent], copy.time)
            self.races.free(clock, int(cta.base), int(cta.base) + int(self.shared_end))

    def c_trap(self, w, x, m, here, taken, end):
        raise PtxError("the kernel traps")

    def c_brkpt(self, w, x, m, here, taken, end):
        self.go(w, m, end)

    def c_nanosleep(self, w, x, m, here, taken, end):
        w.polled = True
        self.go(w, m, end)


def _unravel(index, sizes):
    return index % sizes[0], index // sizes[0] % sizes[1], index // sizes[0] // sizes[1]


def _raise(error):
    raise error
