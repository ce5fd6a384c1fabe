"""Vector clocks: which accesses to memory are ordered by synchronisation, whatever order they happened to run in.

A clock has three rows over all warps and their asynchronous agents: up to where their writes are known, up to where
their reads are known, and up to where their writes are visible to the asynchronous proxy.
"""

import numpy as np

from .ptx_types import PtxError

WRITES, READS, PROXY = 0, 1, 2
_RANK = {"cta": 0, "cluster": 1, "gpu": 2, "sys": 2, None: 2}


class Published:
    """What releases to one place have published, by the scope at which they did."""

    def __init__(self):
        self.levels = {}

    def add(self, clock, warp_cta, scope):
        rank = _RANK[scope]
        for key in (("cta", warp_cta.number), ("cluster", warp_cta.cluster.number), ("gpu", 0))[: rank + 1]:
            old = self.levels.get(key)
            self.levels[key] = clock.copy() if old is None else np.maximum(old, clock)

    def visible(self, cta, scope):
        """Clocks that an acquire by a thread of ``cta`` at this scope gets."""
        rank = _RANK[scope]
        keys = (("cta", cta.number), ("cluster", cta.cluster.number), ("gpu", 0))[: rank + 1]
        return [self.levels[key] for key in keys if key in self.levels]


class Races:
    """Last writer and last reads of each two bytes. Accesses to single bytes are not looked at: neighbours share."""

    def __init__(self, size, warps):
        self.slots = 2 * warps
        self.warps = warps
        granules = size // 2
        self.writer = np.zeros(granules, np.uint16)
        self.written = np.zeros(granules, np.uint32)
        self.where = np.zeros(granules, np.int32)
        self.reads = np.zeros((granules, self.slots), np.uint32)

    def clock(self, slot):
        clock = np.zeros((3, self.slots), np.uint32)
        clock[:, slot] = 1
        return clock

    def read(self, clock, slot, i, size, row=WRITES):
        if size == 1:
            return
        n = size // 2
        writer, written = self.writer.reshape(-1, n)[i], self.written.reshape(-1, n)[i]
        early = written > clock[row][writer]
        if early.any():
            place = tuple(np.argwhere(early)[0])
            how = "" if (written[place] > clock[WRITES][writer[place]]) else ", no fence.proxy.async between"
            raise Race("reads what is written", int(writer[place]), int(self.where.reshape(-1, n)[i][place]), how)
        self.reads.reshape(-1, n, self.slots)[i, :, slot] = clock[WRITES, slot]

    def write(self, clock, slot, i, size, at, changes=None):
        """``changes()`` tells which of the accesses change what is there: those that do not are no races."""
        if size == 1:
            return
        n = size // 2
        writer, written = self.writer.reshape(-1, n), self.written.reshape(-1, n)
        early = written[i] > clock[WRITES][writer[i]]
        if early.any() and (early := early & self._changed(changes, n)).any():
            place = tuple(np.argwhere(early)[0])
            raise Race("writes what is written", int(writer[i][place]), int(self.where.reshape(-1, n)[i][place]))
        early = self.reads.reshape(-1, n, self.slots)[i] > clock[READS]
        if early.any() and (early := early & self._changed(changes, n)[..., None]).any():
            raise Race("writes what is read", int(np.argwhere(early)[0][-1]), None)
        writer[i], written[i] = slot, clock[WRITES, slot]
        self.where.reshape(-1, n)[i] = at

    def free(self, clock, begin, end):
        """The memory goes: whoever used it must have done so before what ``clock`` knows."""
        part = slice(begin // 2, (end + 1) // 2)
        early = np.flatnonzero(self.written[part] > clock[WRITES][self.writer[part]])
        if len(early):
            raise Race("ends the shared memory written", int(self.writer[part][early[0]]),
                       int(self.where[part][early[0]]))
        early = np.argwhere(self.reads[part] > clock[READS])
        if len(early):
            raise Race("ends the shared memory read", int(early[0][1]), None)

    @staticmethod
    def _changed(changes, n):
        if changes is None:
            return np.array(True)
        changed = changes()
        return (changed if changed.ndim == 1 else changed.any(1))[:, None] & np.ones(n, bool)


class Race(PtxError):
    """Two accesses that nothing orders."""

    def __init__(self, what, slot, at, how=""):
        super().__init__(what)
        self.what, self.slot, self.at, self.how = what, slot, at, how
