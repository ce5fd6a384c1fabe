"""mbarriers and asynchronous copies of the PTX interpreter.

What is copied asynchronously appears when the schedule completes it, which is between its issue and the latest moment
that whoever waits for it allows.
"""

import numpy as np

from .ptx_races import PROXY, WRITES, Published
from .ptx_types import SHARED_BASE, SHWIN, U64, PtxError

_MAX_COUNT = (1 << 20) - 1


class Mbarrier:
    """The mbarrier object of PTX: phase, arrivals and bytes that the current phase still waits for."""

    def __init__(self, count, slot, time):
        self.phase, self.expected, self.pending, self.tx = 0, count, count, 0
        self.slot, self.time = slot, time
        self.current, self.completed = Published(), Published()

    def __str__(self):
        return f"phase {self.phase}, {self.pending} of {self.expected} arrivals and {self.tx} bytes outstanding"


class Operation:
    """An asynchronous operation under way; ``lanes`` is None unless lanes wait for their part alone."""

    def __init__(self, w, run, kind, lanes=None):
        self.w, self.run, self.kind, self.lanes = w, run, kind, lanes
        self.group = np.full(32, 1 << 30)
        self.at, self.clock, self.time = w.at, None, 0


class Asynchronous:
    """Part of the machine."""

    # mbarriers

    def _bars(self, w, q, a):
        """``(lane, block, offset)`` of the mbarrier that each lane names, by shared or generic address."""
        if a.dtype.itemsize == 8 and int(a[0 if q is None else q.argmax()]) >> 40 == SHARED_BASE >> 40:
            a = a - U64(SHARED_BASE)
        for lane in range(32) if q is None else np.flatnonzero(q):
            window, offset = divmod(int(a[lane]), SHWIN)
            ctas = w.cta.cluster.ctas
            if window > len(ctas):
                raise PtxError(f"mbarrier at {int(a[lane]):#x}: no block of the cluster")
            cta = ctas[window - 1] if window else w.cta
            if cta.gone:
                raise PtxError(f"block {cta.number} has exited, its shared memory is gone")
            yield lane, cta, offset

    def _bar(self, cta, offset, clock):
        bar = cta.bars.get(offset)
        if bar is None:
            raise PtxError(f"no mbarrier at {offset:#x} of block {cta.number}")
        if self.races and clock is not None and clock[0, bar.slot] < bar.time:
            raise PtxError(f"the mbarrier at {offset:#x} of block {cta.number} is used before its init is known to be "
                           "done: no fence and barrier between")
        return bar

    def bar_init(self, w, q, a, count):
        for lane, cta, offset in self._bars(w, q, a):
            if cta is not w.cta:
                raise PtxError("mbarrier.init of another block's memory")
            if offset % 8 or offset + 8 > int(self.shared_end):
                raise PtxError(f"mbarrier at {offset:#x}: misaligned or out of bounds")
            if offset in cta.bars:
                raise PtxError(f"mbarrier.init of the live mbarrier at {offset:#x}")
            if not 1 <= int(count[lane]) <= _MAX_COUNT:
                raise PtxError(f"mbarrier.init with count {int(count[lane])}")
            place = (offset + int(cta.base)) // 8
            if self.races:
                self.races.write(w.clock_, w.slot, np.array([place]), 8, w.at)
            cta.bars[offset] = Mbarrier(int(count[lane]), w.slot, w.clock_[0, w.slot] if self.races else 0)
            self.mark(8 * place, True)

    def bar_inval(self, w, q, a):
        for _, cta, offset in self._bars(w, q, a):
            self._bar(cta, offset, w.clock_)
            del cta.bars[offset]
            self.mark(int(cta.base) + offset, False)

    def _advance(self, bar):
        if bar.pending == 0 and bar.tx == 0:
            bar.phase += 1
            bar.pending = bar.expected
            bar.completed, bar.current = bar.current, Published()
            self.events += 1
            return True
        return False

    def _transact(self, bar, n):
        bar.tx += n
        if abs(bar.tx) > _MAX_COUNT:
            raise PtxError(f"the tx-count of an mbarrier leaves its range: {bar.tx}")

    def bar_tx(self, w, q, a, n, expect):
        for lane, cta, offset in self._bars(w, q, a):
            bar = self._bar(cta, offset, w.clock_)
            self._transact(bar, int(n[lane]) if expect else -int(n[lane]))
            self._advance(bar)

    def bar_arrive(self, w, q, a, count, n, drop, incomplete, relaxed, scope):
        states = np.zeros(32, U64)
        for lane, cta, offset in self._bars(w, q, a):
            bar = self._bar(cta, offset, w.clock_)
            states[lane] = bar.phase << 32 | bar.pending
            self._transact(bar, int(n[lane]))
            if self.races and not relaxed:
                bar.current.add(w.clock_, w.cta, scope)
            self._arrive(bar, int(count[lane]), drop)
            if self._advance(bar) and incomplete:
                raise PtxError("mbarrier.arrive.noComplete completes the phase")
        if self.races and not relaxed:
            w.clock_[:2, w.slot] += 1
        return states

    def _arrive(self, bar, count, drop=False):
        if count > bar.pending:
            raise PtxError(f"more arrivals than the mbarrier expects: {count} of {bar.pending} ({bar})")
        bar.pending -= count
        bar.expected -= count if drop else 0

    def bar_test(self, w, q, a, state, parity, relaxed, scope):
        done = np.zeros(32, bool)
        for lane, cta, offset in self._bars(w, q, a):
            if cta is not w.cta:
                raise PtxError("a wait for another block's mbarrier")
            bar = self._bar(cta, offset, w.clock_)
            if parity:
                if int(state[lane]) > 1:
                    raise PtxError(f"phase parity {int(state[lane])}")
                done[lane] = bar.phase & 1 != int(state[lane])
            else:
                phase = int(state[lane]) >> 32
                if phase not in (bar.phase, bar.phase - 1):
                    raise PtxError(f"a wait for phase {phase} of an mbarrier in phase {bar.phase}")
                done[lane] = bar.phase > phase
            if done[lane] and self.races:
                for clock in bar.completed.visible(w.cta, scope):
                    if relaxed:
                        w.seen = clock if w.seen is None else np.maximum(w.seen, clock)
                    else:
                        np.maximum(w.clock_, clock, out=w.clock_)
            elif not done[lane]:
                w.stalled, w.waits_for = self.events, f"mbarrier {offset:#x}: {bar}"
        return done

    # Asynchronous writes

    def _issue(self, operations, writes, size, reads=None, row=WRITES):
        """Operations of one instruction. ``writes`` and ``reads`` are the elements of ``size`` bytes that they use from
        now on, until they are known to be done."""
        w = operations[0].w
        if self.races:
            w.agent_time += 1
            clock = w.clock_.copy()
            clock[:2, w.agent] = w.agent_time
            for each in operations:
                each.clock, each.time = clock, w.agent_time
            if reads is not None:
                self.races.read(clock, w.agent, reads, size, row)
            if writes is not None:
                self.races.write(clock, w.agent, writes, size, w.at)
        self.pending += operations
        for each in operations if self.early else ():
            self.complete(each)

    def complete(self, operation):
        """The effects of an operation appear."""
        self.pending.remove(operation)
        w, at = operation.w, operation.w.at
        w.at = operation.at
        operation.run(operation)
        w.at = at
        if operation.lanes is not None:
            w.unwaited.append(operation)

    def _complete_tx(self, operation, cta, offset, n):
        if cta.gone:
            raise PtxError(f"an asynchronous write into block {cta.number}, which has exited")
        bar = self._bar(cta, offset, operation.clock)
        if self.races:
            # Only what the agent itself wrote is published; that its issuer had read is known to whom it reaches.
            clock = operation.clock.copy()
            clock[[WRITES, PROXY]] = 0
            clock[:, operation.w.agent] = operation.time
            bar.current.add(clock, cta, "cluster")
        self._transact(bar, -n)
        self._advance(bar)

    def _alive(self, i, size):
        """The arena's elements ``i`` do not lie in the shared memory of a block that has exited."""
        for cta in (each for each in self.ctas if each.gone):
            at = i * size - int(cta.base)
            if ((at >= 0) & (at < int(self.shared_end))).any():
                raise PtxError(f"an asynchronous access to the shared memory of block {cta.number}, which has exited")

    def store_async(self, w, q, a, values, size, bar):
        n = len(values)
        _, i = self.locate(w, q, a, "shared" if a.dtype.itemsize == 4 else "generic", size * n)
        value = values[0] if n == 1 else np.stack(values, 1)
        operations = []
        for lane, cta, offset in self._bars(w, q, bar):
            if not int(cta.base) <= int(i[lane]) * size * n < int(cta.base) + int(self.shared_end):
                raise PtxError("st.async: the mbarrier is of another block than the destination")
            run = self._late_store(i[lane : lane + 1], value[lane : lane + 1], size, n, cta, offset)
            operations.append(Operation(w, run, "st.async"))
        self._issue(operations, i if q is None else i[q], size * n)

    def _late_store(self, i, value, size, n, cta, offset):
        def run(operation):
            self._alive(i, size * n)
            self.memory.rows(size, n)[i] = value
            self._complete_tx(operation, cta, offset, size * n)
        return run

    def reduce_async(self, w, q, a, name, value, bar):
        if name not in ("add", "min", "max", "and", "or", "xor", "inc", "dec"):
            raise PtxError("red.async." + name)
        size = value.dtype.itemsize
        _, i = self.locate(w, q, a, "shared" if a.dtype.itemsize == 4 else "generic", size)
        for lane, cta, offset in self._bars(w, q, bar):
            # It is atomic: only its completion orders anything.
            operation = Operation(w, self._late_reduction(i[lane], name, value[lane], cta, offset), "red.async")
            self._issue([operation], None, 0)

    def _late_reduction(self, i, name, value, cta, offset):
        function = {"add": np.add, "min": min, "max": max, "and": np.bitwise_and, "or": np.bitwise_or,
                    "xor": np.bitwise_xor, "inc": lambda old, top: 0 if old >= top else old + 1,
                    "dec": lambda old, top: top if old == 0 or old > top else old - 1}[name]

        def run(operation):
            self._alive(np.array([i]), value.dtype.itemsize)
            memory = self.arena.view(value.dtype)
            memory[i] = function(memory[i], value)
            self._complete_tx(operation, cta, offset, value.dtype.itemsize)
        return run

    def copy_async(self, w, q, to, source, size, given):
        given = given if q is None else np.where(q, given, 0)
        if (given > size).any():
            raise PtxError("cp.async: src-size is larger than cp-size")
        _, i = self.locate(w, q, to, "shared" if to.dtype.itemsize == 4 else "generic", size)
        some = given > 0
        j = self.locate(w, some, source, "global", size)[1] if some.any() else i
        lanes = np.ones(32, bool) if q is None else q.copy()
        take = np.arange(size) < given[:, None]

        def run(operation):
            m = operation.lanes
            self.memory.rows(1, size)[i[m]] = (self.memory.rows(1, size)[j] * take)[m]
        self._issue([Operation(w, run, "cp.async", lanes)], i[lanes], size, j[lanes & some])

    def commit_group(self, w, q, bulk):
        lanes = np.ones(32, bool) if q is None else q
        kind, count = ("bulk", w.bulk_commits) if bulk else ("cp.async", w.commits)
        for operation in self.pending + w.unwaited:
            if operation.w is w and operation.kind == kind and operation.lanes is not None:
                fresh = lanes & (operation.group == 1 << 30) & operation.lanes
                operation.group[fresh] = count[fresh]
        count[lanes] += 1

    def wait_group(self, w, q, n, bulk, read):
        lanes = np.ones(32, bool) if q is None else q
        kind, count = ("bulk", w.bulk_commits) if bulk else ("cp.async", w.commits)
        done = [o for o in self.pending + w.unwaited if o.w is w and o.kind == kind and o.lanes is not None]
        for operation in done:
            self._complete_lanes(operation, lanes & (operation.group < count - n) if n or bulk else lanes)

    def _complete_lanes(self, operation, lanes):
        m, rest = operation.lanes & lanes, operation.lanes & ~lanes
        if not m.any():
            return
        w, waits = operation.w, operation in self.pending
        operation.lanes = m
        if waits:
            operation.run(operation)
        operation.lanes = rest
        if self.races:
            w.clock_[:, w.agent] = np.maximum(w.clock_[:, w.agent], operation.time)
        if not rest.any():
            (self.pending if waits else w.unwaited).remove(operation)

    def copy_arrive(self, w, q, a, noinc):
        places = list(self._bars(w, q, a))
        for _, cta, offset in places:
            bar = self._bar(cta, offset, w.clock_)
            if not noinc:
                bar.pending += 1
        before = [o for o in self.pending if o.w is w and o.kind == "cp.async"]

        def run(operation):
            lanes = np.zeros(32, bool)
            lanes[[lane for lane, _, _ in places]] = True
            for each in before:
                if each in self.pending:
                    self._complete_lanes(each, lanes)
            for _, cta, offset in places:
                bar = self._bar(cta, offset, operation.clock)
                if self.races:
                    clock = np.zeros_like(operation.clock)
                    clock[:, w.agent] = operation.time
                    bar.current.add(clock, cta, "cluster")
                self._arrive(bar, 1)
                self._advance(bar)
        self._issue([Operation(w, run, "arrive")], None, 0)

    def copy_bulk(self, w, q, to, a, source, b, n, bar):
        bars = {lane: (cta, offset) for lane, cta, offset in self._bars(w, q, bar)} if bar is not None else {}
        for lane in range(32) if q is None else np.flatnonzero(q):
            size = int(n[lane])
            if size % 16 or not size:
                raise PtxError(f"cp.async.bulk of {size} bytes: not a multiple of 16")
            i, j = (self._rows_of(w, address[lane], space, size) for address, space in ((a, to), (b, source)))
            operation = Operation(w, self._late_bulk(i, j, size, bars.get(lane)), "bulk",
                                  None if bar is not None else np.arange(32) == lane)
            self._issue([operation], i, 16, j, PROXY)

    def _rows_of(self, w, address, space, size):
        """Indices of the 16-byte rows from an address on."""
        places = address + np.arange(0, size, 16).astype(address.dtype)
        if space == "shared" and address.dtype.itemsize == 8:
            space = "generic"
        parts = [np.resize(places[at : at + 32], 32) for at in range(0, len(places), 32)]
        return np.concatenate([self.locate(w, None, part, space, 16)[1] for part in parts])[: len(places)]

    def _late_bulk(self, i, j, size, bar):
        def run(operation):
            self._alive(i, 16)
            self._alive(j, 16)
            self.memory.rows(8, 2)[i] = self.memory.rows(8, 2)[j]
            if bar:
                self._complete_tx(operation, *bar, size)
        return run
