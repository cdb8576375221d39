//! Sizes as people write them: `10GiB`, `500MB`, `1TiB`, or plain bytes.

/// What a byte count with a unit is multiplied by. Longest suffixes first: `GiB` also ends in `B`.
const UNITS: [(&str, u64); 14] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
    ("", 1),
];

/// A sector: what a size in units of 1000 is rounded up to.
const SECTOR_BYTES: u64 = 512;

/// Reads a size in bytes: a whole number and a unit of 1024 (`KiB`, `MiB`, `GiB`, `TiB`, or their first
/// letter) or of 1000 (`kB`, `MB`, `GB`, `TB`).
///
/// 500MB is no whole number of sectors; who writes it wants at least that much, and gets the next sector's end.
/// Plain bytes are taken at their word. The volume's own limits are checked where it is created.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    if number.is_empty() || unit.starts_with(['.', ',']) {
        return Err("a size is a whole number with a unit: 10GiB, 500MB, 1TiB, or plain bytes".to_owned());
    }
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| {
        format!("`{unit}` is no unit of size: KiB, MiB, GiB, TiB (of 1024) or kB, MB, GB, TB (of 1000)")
    })?;
    let decimal = factor.is_multiple_of(1000);
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .and_then(|bytes| if decimal { bytes.checked_next_multiple_of(SECTOR_BYTES) } else { Some(bytes) })
        .ok_or_else(|| "the size does not fit in 64 bits".to_owned())
}

/// A byte count for people: in the largest unit of 1024 that leaves at least 1, with up to two decimals.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let Some((name, unit)) = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, unit)| bytes >= *unit)
    else {
        return format!("{bytes} B");
    };
    let hundredths = u128::from(bytes) * 100 / u128::from(unit);
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match (part, part % 10) {
        (0, _) => format!("{whole} {name}"),
        (_, 0) => format!("{whole}.{} {name}", part / 10),
        _ => format!("{whole}.{part:02} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units_and_without_are_read() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("512B", 512),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10g", 10 << 30),
            ("500MB", 500_000_256),
            ("2GB", 2_000_000_000),
            ("1000001", 1_000_001),
            ("1TiB", 1 << 40),
            ("64TiB", 64 << 40),
            ("4kB", 4096),
            ("4KiB", 4096),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_hint() {
        for text in ["", "GiB", "1.5GiB", "-1", "1,5G", "ten"] {
            assert!(parse_size(text).is_err_and(|e| e.contains("10GiB")), "{text}");
        }
        assert!(parse_size("10XiB").is_err_and(|e| e.contains("`xib` is no unit")));
        assert!(parse_size("99999999999999999999").is_err());
        assert!(parse_size("18446744073709551615TiB").is_err_and(|e| e.contains("64 bits")));
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1 << 20, "1 MiB"),
            (10 << 30, "10 GiB"),
            (1_610_612_736, "1.5 GiB"),
            (500_000_000, "476.83 MiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(show_bytes(bytes), text);
        }
    }
}
