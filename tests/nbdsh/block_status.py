"""Extents and chunks as a client sees them whose library does not stop it from asking amiss; run by nbdsh
(tests/clients.rs) on a volume of 8 MiB that was never written.
"""

import os

MIB = 1 << 20
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO

h.set_strict_mode(0)
h.set_opt_mode(True)
h.connect_uri(os.environ["SEALBLK_URI"])
listed = []
h.opt_list_meta_context(listed.append)
assert listed == [nbd.CONTEXT_BASE_ALLOCATION], listed
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context("x-nobody:knows")
h.opt_go()
assert h.get_structured_replies_negotiated() and h.can_df()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) and not h.can_meta_context("x-nobody:knows")
SIZE = h.get_size()


def extents(length, offset, flags=0):
    told = []

    def one(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        told.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, one, flags)
    return told


def chunks(length, offset, flags=0):
    kinds = []
    data = h.pread_structured(length, offset, lambda buf, at, status, error: kinds.append(status), flags)
    return bytes(data), kinds


def refused(errno, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == errno, f"{args}: {error.errno}, not {errno}"
    else:
        raise AssertionError(f"{args} was accepted")


assert extents(SIZE, 0) == [(SIZE, HOLE)]
h.pwrite(b"\xa5" * MIB, 2 * MIB)
h.pwrite(bytes(4096), 5 * MIB)  # zeros that are written are data
assert extents(SIZE, 0) == [(2 * MIB, HOLE), (MIB, 0), (2 * MIB, HOLE), (4096, 0), (3 * MIB - 4096, HOLE)]
assert extents(2, 2 * MIB - 1) == [(1, HOLE), (1, 0)]
assert extents(SIZE, 0, nbd.CMD_FLAG_REQ_ONE) == [(2 * MIB, HOLE)]
assert extents(100, 2 * MIB + 1, nbd.CMD_FLAG_REQ_ONE) == [(100, 0)]

assert chunks(MIB, 0) == (bytes(MIB), [nbd.READ_HOLE])
assert chunks(MIB, 2 * MIB) == (b"\xa5" * MIB, [nbd.READ_DATA])
mixed = bytes(MIB) + b"\xa5" * MIB
assert chunks(2 * MIB, MIB, nbd.CMD_FLAG_DF) == (mixed, [nbd.READ_DATA])

h.trim(MIB, 2 * MIB)
h.zero(4096, 5 * MIB)
assert extents(SIZE, 0) == [(SIZE, HOLE)]

refused("EINVAL", extents, 0, 0)
refused("EINVAL", extents, 2, SIZE - 1)
refused("EINVAL", extents, 512, (1 << 63) - 512)
refused("EINVAL", extents, 512, 0, nbd.CMD_FLAG_DF)
refused("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
assert h.pread(3, 0) == bytes(3)
h.shutdown()
