"""Global and shared memory that notice misuse."""

from __future__ import annotations

from collections import Counter

import numpy as np

FIRST_SHARED = 1024  # the first address that is a kernel's own, as on GPUs
SPACING = 1 << 36  # bytes between the addresses of two arrays


class Fault(RuntimeError):
    """Something that a GPU would not notice, or only by crashing."""


class Lanes:
    """Who executes: the threads of a batch of blocks, and how many barriers each block has passed."""

    def __init__(self, first_block: int, blocks: int, threads: int) -> None:
        self.count = blocks * threads
        self.threads, self.blocks, self.first_block = threads, blocks, first_block
        lane = np.arange(self.count)
        self.block, self.thread = lane // threads, lane % threads
        self.warp = (lane // 32 + 1).astype(np.int32)  # over the batch, from 1
        self.epoch = np.ones(blocks, np.int32)


class Words:
    """For every 32-bit word, which warp accessed it last, and in which of its block's epochs."""

    def __init__(self, size: int) -> None:
        self.writer, self.write_epoch, self.write_block = (np.zeros(size, np.int32) for _ in range(3))
        self.reader, self.read_epoch = np.zeros(size, np.int32), np.zeros(size, np.int32)  # reader -1: several warps


class Global:
    """The arrays that a kernel was given, each at an address of its own."""

    def __init__(self) -> None:
        self.arrays: list[tuple[np.ndarray, Words, int]] = []

    def add(self, array: np.ndarray) -> int:
        """Take an array in and give its address; the same memory has one address."""
        for number, (taken, _, _) in enumerate(self.arrays):
            if taken.ctypes.data == array.ctypes.data and taken.nbytes == array.nbytes:
                return (number + 1) * SPACING
        data = array.reshape(-1).view(np.uint8)
        unit = min(4, array.itemsize)  # neighbouring halves may be written by two warps
        self.arrays.append((data, Words(-(-data.size // unit)), unit))
        return len(self.arrays) * SPACING

    def pieces(self, address: np.ndarray, size: int, chosen: np.ndarray, what: str):
        """For each array that the chosen lanes access: the lanes, their byte offsets, the bytes, the words and their size."""
        at = address[chosen].astype(np.int64)
        number = at // SPACING
        for index in np.unique(number):
            if not 1 <= index <= len(self.arrays):
                raise Fault(f"{what}: address {int(at[number == index][0]):#x} is in no array")
            data, words, unit = self.arrays[index - 1]
            mine = number == index
            offset = at[mine] - index * SPACING
            if (offset % size).any():
                raise Fault(f"{what}: misaligned {size}-byte access at byte {int(offset[offset % size != 0][0])}")
            if (offset + size > data.size).any():
                raise Fault(f"{what}: out of bounds, byte {int(offset.max())} + {size} of {data.size}")
            yield chosen[mine], offset, data, words, unit

    def read(self, lanes: Lanes, address: np.ndarray, size: int, chosen: np.ndarray, what: str) -> np.ndarray:
        """The bytes (chosen, size)."""
        result = np.zeros((lanes.count, size), np.uint8)
        for who, offset, data, words, unit in self.pieces(address, size, chosen, what):
            for w in range(0, size, unit):
                self._check(
                    lanes, who, (offset + w) // unit, words, what, "reads what another warp wrote without a barrier"
                )
            result[who] = data[offset[:, None] + np.arange(size)]
        return result[chosen]

    def write(
        self, lanes: Lanes, address: np.ndarray, size: int, chosen: np.ndarray, values: np.ndarray, what: str
    ) -> None:
        for who, offset, data, words, unit in self.pieces(address, size, chosen, what):
            if np.unique(offset).size != offset.size:
                raise Fault(f"{what}: two threads write the same global address at once")
            for w in range(0, size, unit):
                at = (offset + w) // unit
                self._check(lanes, who, at, words, what, "writes what another warp wrote without a barrier")
                words.writer[at], words.write_epoch[at] = lanes.warp[who], lanes.epoch[lanes.block[who]]
                words.write_block[at] = lanes.first_block + lanes.block[who] + 1
            data[offset[:, None] + np.arange(size)] = values[np.searchsorted(chosen, who)]

    @staticmethod
    def _check(lanes: Lanes, who: np.ndarray, at: np.ndarray, words: Words, what: str, sin: str) -> None:
        block = lanes.first_block + lanes.block[who] + 1
        same_block = words.write_block[at] == block
        ordered = (words.writer[at] == lanes.warp[who]) | (words.write_epoch[at] < lanes.epoch[lanes.block[who]])
        bad = (words.write_block[at] != 0) & ~(same_block & ordered)
        if bad.any():
            raise Fault(f"{what}: race in global memory: {sin}")


class Shared:
    """The shared memory of each block of a batch."""

    def __init__(self, lanes: Lanes, size: int) -> None:
        self.size = -(-size // 16) * 16
        self.data = np.full(lanes.blocks * self.size, 0xFF, np.uint8)
        self.words = Words(self.data.size // 4)
        self.pending = np.zeros(self.data.size // 4, bool)  # an asynchronous copy will write here
        self.written = np.zeros(self.data.size, bool)
        # What wgmma, which reads through another proxy, must know: who wrote since its last proxy fence (the lane + 1),
        # and how many matrix products under way read a word.
        self.unfenced = np.zeros(self.data.size // 4, np.int32)
        self.in_use = np.zeros(self.data.size // 4, np.int16)
        self.conflicts: Counter | None = None  # where they are counted

    def count(self, at: np.ndarray, size: int, who: np.ndarray, opcode: str) -> None:
        """Count how often lanes that go together meet in a bank: those of 128 bytes, so eight lanes of 16 bytes each."""
        if self.conflicts is None or size < 4:
            return
        phase = who // (128 // size)
        banks = 128 // size  # as wide as the access
        meeting = np.unique((phase * banks + at // size % banks) * (self.data.size // 128 + 1) + at // 128)
        bank, lines = np.unique(meeting // (self.data.size // 128 + 1), return_counts=True)
        most = np.zeros(int(phase.max()) + 1, np.int64)
        np.maximum.at(most, bank // banks, lines)
        self.conflicts[f"{opcode} phases"] += int((most > 0).sum())
        self.conflicts[f"{opcode} conflicts"] += int(np.maximum(most - 1, 0).sum())

    def place(self, lanes: Lanes, address: np.ndarray, size: int, chosen: np.ndarray, what: str) -> np.ndarray:
        """Byte positions in ``data``, checked."""
        at = address[chosen].astype(np.int64)
        if (at % size).any():
            raise Fault(f"{what}: misaligned {size}-byte access to shared memory")
        if (at < FIRST_SHARED).any() or (at + size > self.size).any():
            raise Fault(f"{what}: shared memory out of bounds, byte {int(at.max())} + {size} of {self.size}")
        at = at + lanes.block[chosen] * self.size
        self.count(at, size, chosen, what.split(" ")[0].split("\t")[0])
        return at

    def check_read(self, lanes: Lanes, at: np.ndarray, size: int, who: np.ndarray, what: str) -> None:
        words, epoch, warp = self.words, lanes.epoch[lanes.block[who]], lanes.warp[who]
        for w in range(0, size, 4):
            word = (at + w) // 4
            if self.pending[word].any():
                raise Fault(
                    f"{what}: reads shared memory that an asynchronous copy has not delivered: a wait is missing"
                )
            if ((words.write_epoch[word] == epoch) & (words.writer[word] != warp)).any():
                raise Fault(f"{what}: race in shared memory: reads another warp's write without a barrier")
            if not self.written[at + w].all():
                raise Fault(f"{what}: reads shared memory that nobody wrote")
            several = (words.read_epoch[word] == epoch) & (words.reader[word] != warp)
            words.read_epoch[word] = epoch
            words.reader[word] = warp
            words.reader[word[several]] = -1
            # One instruction can read a word by several warps: the last one stands there, unless marked.
            others = words.reader[word] != warp
            words.reader[word[others]] = -1

    def check_write(self, lanes: Lanes, at: np.ndarray, size: int, who: np.ndarray, what: str) -> None:
        words, epoch, warp = self.words, lanes.epoch[lanes.block[who]], lanes.warp[who]
        for w in range(0, size, 4):
            word = (at + w) // 4
            if self.pending[word].any():
                raise Fault(f"{what}: writes where an asynchronous copy is under way")
            if self.in_use[word].any():
                raise Fault(f"{what}: writes what a matrix product under way reads: a wait is missing")
            self.unfenced[word] = who + 1
            read = (words.read_epoch[word] == epoch) & (words.reader[word] != warp)
            wrote = (words.write_epoch[word] == epoch) & (words.writer[word] != warp)
            if (read | wrote).any():
                raise Fault(f"{what}: race in shared memory: writes what another warp accessed without a barrier")
            words.write_epoch[word], words.writer[word] = epoch, warp
            if (words.writer[word] != warp).any():
                raise Fault(f"{what}: race in shared memory: two warps write the same word")

    def read(self, lanes: Lanes, address: np.ndarray, size: int, chosen: np.ndarray, what: str) -> np.ndarray:
        at = self.place(lanes, address, size, chosen, what)
        self.check_read(lanes, at, size, chosen, what)
        return self.data[at[:, None] + np.arange(size)]

    def write(
        self, lanes: Lanes, address: np.ndarray, size: int, chosen: np.ndarray, values: np.ndarray, what: str
    ) -> None:
        at = self.place(lanes, address, size, chosen, what)
        self.check_write(lanes, at, size, chosen, what)
        self.store(at, values)

    def store(self, at: np.ndarray, values: np.ndarray) -> None:
        where = at[:, None] + np.arange(values.shape[1])
        self.data[where] = values
        self.written[where] = True
