//! The sector cipher's rates, for our own history: every kernel of this machine, both directions, three sizes of
//! call.
//!
//! `cargo bench --bench cipher`. scripts/bench-cipher compares with other libraries.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealblk_keymem::{DataKey, KeyMemError};
use sealblk_xts::{Kernel, SECTOR_BYTES, SectorCipher};

/// A single sector, a page, and a buffer that still fits in the L2 cache.
const CALL_BYTES: [usize; 3] = [SECTOR_BYTES, 4 * 1024, 64 * 1024];

fn cipher(kernel: Kernel) -> SectorCipher {
    let key = DataKey::init::<KeyMemError>(|bytes| {
        *bytes = std::array::from_fn(|index| index as u8);
        Ok(())
    });
    SectorCipher::with_kernel(&key.expect("locked memory"), kernel).expect("an available kernel")
}

fn kernels(criterion: &mut Criterion) {
    for kernel in Kernel::available() {
        let cipher = cipher(kernel);
        let mut group = criterion.benchmark_group(kernel.name());
        for bytes in CALL_BYTES {
            let mut sectors = vec![0x5a; bytes];
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new("encrypt", bytes), |bencher| {
                bencher.iter(|| cipher.encrypt_in_place(black_box(7), &mut sectors));
            });
            group.bench_function(BenchmarkId::new("decrypt", bytes), |bencher| {
                bencher.iter(|| cipher.decrypt_in_place(black_box(7), &mut sectors));
            });
        }
        let mut sectors = vec![0; 64 * 1024];
        group.bench_function("unwritten/65536", |bencher| {
            bencher.iter(|| cipher.decrypt_in_place(black_box(7), &mut sectors));
        });
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
