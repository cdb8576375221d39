#!/usr/bin/env python3
"""Makes blob_oracle.hex: one wrapped key, from the byte table in src/local/blob.rs alone.

Usage: tests/blob_oracle.py > tests/blob_oracle.hex   (needs the `cryptography` package)
"""
import hashlib, hmac, struct
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

backing, data_key = bytes(range(32)), bytes(range(100, 164))
nonce = b"\x33" * 32
header = b"SEALKEY\x01" + b"\x11" * 16 + b"\x22" * 32 + nonce
fixed = b"sealblk kms data key" + b"\x00" + nonce + struct.pack(">I", 256)
wrapping = hmac.new(backing, struct.pack(">I", 1) + fixed, hashlib.sha256).digest()
context = struct.pack("<Q", 1)
for text in (b"aws:ebs:id", b"vol-0123456789abcdef0"):
    context += struct.pack("<Q", len(text)) + text
print((header + AESGCM(wrapping).encrypt(bytes(12), data_key, header + context)).hex())
