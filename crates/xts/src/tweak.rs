//! Tweaks as numbers: counting on, and GF(2^128) as IEEE 1619 clause 5.2 orders its bits.

/// `element · x^power` for `power < 58`: the formula in the crate's header. Constant-time.
///
/// The carry-less product with `0x87 = x^7 + x^2 + x + 1` is four shifts.
#[inline(always)]
pub(crate) fn times_x_to(element: u128, power: u32) -> u128 {
    let carry = ((element >> 64) as u64).unbounded_shr(64 - power);
    let product = carry ^ (carry << 1) ^ (carry << 2) ^ (carry << 7);
    (element << power) ^ u128::from(product)
}

/// The tweak value of the sector `count` after the one that has `value`: the low half counts on, wrapping.
#[inline(always)]
pub(crate) fn following(value: u128, count: usize) -> u128 {
    let (low, high) = (value as u64, value >> 64);
    (high << 64) | u128::from(low.wrapping_add(count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619 clause 5.2: shift left by one bit; if a bit fell out, xor the lowest byte with 0x87.
    fn double(element: u128) -> u128 {
        (element << 1) ^ if element >> 127 == 1 { 0x87 } else { 0 }
    }

    #[test]
    fn powers_of_x_are_repeated_doublings() {
        for element in [1, 1 << 127, u128::MAX, 0x8000_0000_0000_0001_8000_0000_0000_0001, 0xfeed << 110] {
            let mut expected = element;
            for power in 0..58 {
                assert_eq!(times_x_to(element, power), expected);
                expected = double(expected);
            }
        }
    }

    #[test]
    fn only_the_low_half_of_a_tweak_value_counts_on() {
        assert_eq!(following((7 << 64) | 0xffff_ffff, 1), (7 << 64) | 0x1_0000_0000);
        assert_eq!(following((7 << 64) | u128::from(u64::MAX), 2), (7 << 64) | 1);
    }
}
