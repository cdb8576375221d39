"""What a server must refuse, with the right error, and stay in sync; run by nbdsh (tests/clients.rs)."""

import os

h.set_strict_mode(0)  # or libnbd refuses these itself
h.connect_uri(os.environ["SEALBLK_URI"])
SIZE = h.get_size()


def refused(errno, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == errno, f"{call.__name__}{args[-2:]}: {error.errno}, not {errno}"
    else:
        raise AssertionError(f"{call.__name__}{args[-2:]} was not refused")
    h.pwrite(b"in sync", 512)
    assert h.pread(7, 512) == b"in sync"


refused("EINVAL", h.pread, 1, SIZE)
refused("EINVAL", h.pread, 513, SIZE - 512)
refused("EINVAL", h.pread, 512, (1 << 63) - 512)
refused("ENOSPC", h.pwrite, bytes(513), SIZE - 512)
refused("ENOSPC", h.pwrite, b"x", SIZE)
refused("ENOSPC", h.zero, 513, SIZE - 512)
refused("EINVAL", h.trim, 513, SIZE - 512)
refused("EINVAL", h.cache, 513, SIZE - 512)
refused("EINVAL", h.pwrite, b"x", 0, nbd.CMD_FLAG_FAST_ZERO)
refused("EINVAL", h.pwrite, b"x", 0, nbd.CMD_FLAG_NO_HOLE)
refused("EINVAL", h.trim, 512, 0, 1 << 10)
# A range of no bytes is no error, and does nothing.
h.pwrite(b"", 0)
h.zero(0, SIZE)
h.shutdown()
