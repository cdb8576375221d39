//! Which material of a key wraps a data key, where the wrapped key itself tells: for showing, never for deciding. Nothing
//! here has been authenticated.

use crate::local;

/// What a ciphertext of the transit engine begins with, before its key's version.
const TRANSIT_PREFIX: &str = "vault:v";

/// The material: of the embedded store its id (`CurrentKeyMaterialId` of the time), of a transit engine the key's
/// version, `v3`. `None`: only the service knows.
pub fn wrapped_under(wrapped: &[u8]) -> Option<String> {
    local::material_of(wrapped).or_else(|| {
        let text = std::str::from_utf8(wrapped).ok()?;
        let (version, _) = text.strip_prefix(TRANSIT_PREFIX)?.split_once(':')?;
        let is_version = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
        is_version.then(|| format!("v{version}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_tells_its_material_or_nothing() {
        let blob = [b"SEALKEY\x01".as_slice(), &[1; 16], &[0xAB; 32], &[2; 112]].concat();
        assert_eq!(wrapped_under(&blob), Some("ab".repeat(32)));
        assert_eq!(wrapped_under(&blob[..167]), None);
        assert_eq!(wrapped_under(b"vault:v12:c2VjcmV0"), Some("v12".to_owned()));
        for other in [b"".as_slice(), b"vault:v:x", b"vault:v1", b"vault:v-1:x", &[0xFF; 40]] {
            assert_eq!(wrapped_under(other), None, "{other:?}");
        }
    }
}
