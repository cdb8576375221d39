"""Random commands on random byte ranges, checked against a model in memory; run by nbdsh (tests/clients.rs).

Strict mode is off for alignment and bounds only where a test needs it; the size is small, so that ranges overlap
and meet sector edges often. The seed is fixed and printed with a failure.
"""

import os
import random

SEED = 20
ROUNDS = 1500
random.seed(SEED)

h.set_request_structured_replies(True)
h.connect_uri(os.environ["SEALBLK_URI"])
SIZE = h.get_size()
WINDOW = 64 * 1024  # most ranges begin here, so that they overlap
model = bytearray(SIZE)


def some_range():
    at = random.randrange(SIZE if random.random() < 0.1 else WINDOW)
    longest = random.choice([1, 16, 511, 512, 513, 4096, 70000, 300000])
    return at, min(random.randint(1, longest), SIZE - at)


def maybe(flag):
    return flag if random.random() < 0.3 else 0


for number in range(ROUNDS):
    at, length = some_range()
    end = at + length
    command = random.choice(["read", "read", "write", "write", "trim", "zero", "fast zero", "flush", "cache"])
    what = f"seed {SEED}, number {number}: {command} {length} at {at}"
    if command == "read":
        assert h.pread(length, at) == model[at:end], what
    elif command == "write":
        data = random.randbytes(length)
        h.pwrite(data, at, maybe(nbd.CMD_FLAG_FUA))
        model[at:end] = data
    elif command == "zero":
        h.zero(length, at, maybe(nbd.CMD_FLAG_FUA) | maybe(nbd.CMD_FLAG_NO_HOLE))
        model[at:end] = bytes(length)
    elif command == "fast zero":
        try:
            h.zero(length, at, nbd.CMD_FLAG_FAST_ZERO | maybe(nbd.CMD_FLAG_NO_HOLE))
            model[at:end] = bytes(length)
        except nbd.Error as error:
            assert error.errno == "ENOTSUP", what  # and nothing has changed, which later reads show
    elif command == "trim":
        # Whole sectors read as zeros afterwards; what a trim leaves at its ragged ends is as before.
        h.trim(length, at, maybe(nbd.CMD_FLAG_FUA))
        got = h.pread(length, at)
        assert all(a == b or a == 0 for a, b in zip(got, model[at:end])), what
        first, last = -(-at // 512) * 512, end // 512 * 512
        assert last <= first or not any(got[first - at:last - at]), what + " leaves whole sectors"
        model[at:end] = got
    elif command == "flush":
        h.flush()
    else:
        h.cache(length, at)

for at in range(0, SIZE, 1 << 20):
    assert h.pread(1 << 20, at) == model[at:at + (1 << 20)], f"seed {SEED}: the end state at {at}"
h.shutdown()
