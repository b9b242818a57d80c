"""How many threads each kernel runs on, and how they share the work: functions of the shapes alone.

The order of every sum follows from these numbers, so they depend on neither the device nor its
load: the same shapes give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 256  # threads of a block, in every launch
WARP = 32
PACK_BYTES = 16  # what one instruction moves, at most
# Blocks beyond this many add no parallelism to any GPU of today; the grid-stride loops cover the
# rest.
_MAX_BLOCKS = 4096
_MAX_ROW_BLOCKS = 65536
_SPANS = 128
_SHORTEST_SPAN = 32
_LANES = 65536  # threads that keep any GPU of today busy
_COLUMN_BLOCKS = 1024
_ROWS_EACH = 4
_WARP_ROWS = 2048  # rows that give each multiprocessor of any GPU of today enough warps
_FEW_ROWS = 256  # rows that leave some GPUs' multiprocessors idle, if they are a block's job each
_PIECE = 2048  # packs that are worth a block
_COLUMNS_KEPT = 32  # of each thread, for which it has a sum in shared memory
_SUM_BLOCKS = 512  # two for each multiprocessor of the largest GPU of today, twice


class Launch(NamedTuple):
    """Blocks in the grid and threads in a block."""

    grid: int
    block: int = BLOCK


def over(n: int) -> Launch:
    """A launch for `n` > 0 independent elements."""
    return Launch(min(_ceil(n, BLOCK), _MAX_BLOCKS))


def over_packs(n: int, itemsize: int) -> Launch:
    """A launch for `n` > 0 independent elements of which a thread moves 16 bytes at once."""
    return over(_ceil(n, PACK_BYTES // itemsize))


def lanes_of(neighbours: int, itemsize: int) -> int:
    """How many neighbours a thread takes at once: 16 bytes of them where `neighbours`, those that
    lie together, are whole pieces of 16, else one."""
    lanes = PACK_BYTES // itemsize
    return 1 if neighbours % lanes else lanes


def over_rows(rows: int, cols: int) -> tuple[int, Launch]:
    """Threads that share a row, and a launch for `rows` of `cols` > 0 columns.

    Short rows take a warp each, which needs no synchronisation; long ones a block.
    """
    team = WARP if cols <= BLOCK else BLOCK
    return team, Launch(min(_ceil(rows, BLOCK // team), _MAX_ROW_BLOCKS))


class RowShare(NamedTuple):
    """How threads share rows that are reduced; see ``kernels/rows.cuh``.

    Attributes
    ----------
    team : threads for a row.
    held : packs that a thread keeps of a row that is read once; 0 where each pass reads it.
    packed : whether rows are whole packs of 16 bytes. Else a pack is one element where a row is
        kept, and rows that are not begin within one (``kernels/uneven.cuh``).
    pieces : into how many jobs a row is cut.
    launch : the launch.
    """

    team: int
    held: int
    packed: int
    pieces: int
    launch: Launch

    def sums_columns(self, itemsize: int) -> bool:
        """Whether a block can add up each column of its rows beside: what it takes of shared memory
        is no more than every GPU has."""
        lanes = PACK_BYTES // itemsize if self.packed else 1
        return 0 < self.held * lanes <= _COLUMNS_KEPT

    def in_blocks_of_many(self) -> RowShare:
        """The same by few blocks, each of which leaves sums behind."""
        grid = min(self.launch.grid, _SUM_BLOCKS)
        return self._replace(launch=self.launch._replace(grid=grid))


def by_rows(rows: int, cols: int, itemsize: int, passes: int = 2) -> RowShare:
    """How `rows` of `cols` > 0 columns are reduced.

    Rows of up to 4 KiB take a warp each, which needs no synchronisation, where there are enough of
    them to keep a GPU busy; others a block. Up to 32 KiB are kept in registers, so that memory is
    read once however often a kernel passes over them. Longer rows, where there are fewer than
    multiprocessors or not many more, are cut into pieces for a block each.

    Parameters
    ----------
    rows, cols, itemsize : of the array.
    passes : how often the kernel reads a row.
    """
    lanes = PACK_BYTES // itemsize
    packed = int(cols % lanes == 0)
    packs = cols // lanes if packed else cols
    team, held = BLOCK, 8
    if packs <= WARP * 2:
        team, held = WARP, 2
    elif packs <= WARP * 8 and rows >= _WARP_ROWS:
        team = WARP
    elif packs > BLOCK * 8 or passes == 1:
        held = 0
    pieces = 1
    if held == 0 and rows < _FEW_ROWS:
        pieces = max(min(_COLUMN_BLOCKS // max(rows, 1), cols // lanes // _PIECE), 1)
    return RowShare(
        team,
        held,
        packed,
        pieces,
        Launch(min(_ceil(rows * pieces, BLOCK // team), _MAX_ROW_BLOCKS)),
    )


def over_columns(rows: int, packs: int) -> tuple[int, int, int, Launch]:
    """How threads share a table whose columns are summed.

    Parameters
    ----------
    rows, packs : of the table; a pack is what a thread takes of a row at once.

    Returns
    -------
    width : threads for neighbouring packs; a block has ``BLOCK // width`` rows of them.
    spans : how many blocks share a column.
    height : rows of a span.
    launch : the launch.
    """
    width = min(_power_of_two(packs), WARP)
    tiles = _ceil(packs, width)
    depth = BLOCK // width
    # Enough blocks for all of a GPU, but no spans so short that a thread has one or two rows.
    spans = min(_ceil(_COLUMN_BLOCKS, tiles), max(_ceil(rows, depth * _ROWS_EACH), 1))
    height = _ceil(rows, spans)
    spans = _ceil(rows, height)
    return width, spans, height, Launch(min(tiles * spans, _MAX_ROW_BLOCKS))


def over_tiles(columns: int) -> Launch:
    """A launch whose blocks take 32 columns each in turn."""
    return Launch(min(_ceil(columns, WARP), _MAX_BLOCKS))


def over_column_sums(columns: int) -> Launch:
    """A launch whose blocks take 8 columns each in turn."""
    return Launch(min(_ceil(columns, 8), _MAX_BLOCKS))


def row_span(rows: int) -> int:
    """How many consecutive rows one thread adds up where a column is summed in two steps."""
    return max(_ceil(rows, _SPANS), _SHORTEST_SPAN)


def channel_span(rows: int, columns: int) -> int:
    """The same where there are few columns: spans as short as it takes to give work to all of a
    GPU."""
    return max(_ceil(rows * columns, _LANES), _SHORTEST_SPAN)


def over_segments(outer: int, size: int, count: int, tail: int) -> tuple[int, int, Launch]:
    """How the threads of a block share a segment sum.

    Parameters
    ----------
    outer, size, tail : shape of the result.
    count : number of terms that are dealt out to the `size` segments.

    Returns
    -------
    width : threads for neighbouring elements of the tail.
    depth : threads that share one sum: about four times the mean length of a segment, since lengths
        vary.
    launch : the launch.
    """
    width = min(_power_of_two(tail), WARP)
    depth = min(_power_of_two(_ceil(4 * count, size)), BLOCK // width)
    height = BLOCK // (width * depth)
    tiles = outer * _ceil(size, height) * _ceil(tail, width)
    return width, depth, Launch(min(tiles, _MAX_ROW_BLOCKS))


def over_ranks(count: int) -> tuple[int, Launch]:
    """How `count` > 0 keys are compared with each other.

    Returns
    -------
    parts : into how many stretches the other keys are cut, so that few keys too keep a GPU busy.
    launch : the launch.
    """
    blocks = _ceil(count, BLOCK)
    parts = min(blocks, max(_COLUMN_BLOCKS // blocks, 1), WARP)
    return parts, Launch(min(blocks * parts, _MAX_ROW_BLOCKS))


def _ceil(n: int, d: int) -> int:
    return -(-n // d)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()
