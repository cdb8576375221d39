//! The PKCS#11 URI (RFC 7512), as far as a key needs it: which token, which object, which module.
//!
//! Taken: the path attributes `token`, `manufacturer`, `serial`, `model`, `slot-id`, `object`, `id`, `type`, and the
//! query attributes `module-path` and `pin-source`. `pin-value` is refused: the URI is stored and shown. Everything else is
//! refused too, because an attribute that is ignored may have been the one that tells two keys apart.

use std::fmt;
use std::path::PathBuf;

use crate::key_uri::KeyUriError;

const SHAPE: &str = "pkcs11:token=LABEL;object=LABEL (and id=%XX, serial, manufacturer, model, slot-id, type=secret-key), \
                     then ?module-path=PATH&pin-source=PATH if needed (RFC 7512)";

/// A key in a token. Matching fields restrict; at least `object` or `id` is there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pkcs11Uri {
    /// The token's label.
    pub token: Option<String>,
    /// The token's manufacturer.
    pub manufacturer: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The token's model.
    pub model: Option<String>,
    /// The slot's number; changes between starts of many modules.
    pub slot_id: Option<u64>,
    /// The key's CKA_LABEL.
    pub object: Option<String>,
    /// The key's CKA_ID.
    pub id: Option<Vec<u8>>,
    /// The module's shared library.
    pub module_path: Option<PathBuf>,
    /// The file that holds the PIN.
    pub pin_source: Option<PathBuf>,
}

impl Pkcs11Uri {
    /// Parses what follows `pkcs11:`.
    pub(crate) fn parse(rest: &str) -> Result<Self, KeyUriError> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        for attribute in path.split(';').filter(|attribute| !attribute.is_empty()) {
            let (name, value) = attribute.split_once('=').ok_or(KeyUriError::Shape(SHAPE))?;
            uri.take_path_attribute(name, value)?;
        }
        for attribute in query.split('&').filter(|attribute| !attribute.is_empty()) {
            let (name, value) = attribute.split_once('=').ok_or(KeyUriError::Shape(SHAPE))?;
            uri.take_query_attribute(name, value)?;
        }
        if uri.object.is_none() && uri.id.is_none() { Err(KeyUriError::Shape(SHAPE)) } else { Ok(uri) }
    }

    fn take_path_attribute(&mut self, name: &str, value: &str) -> Result<(), KeyUriError> {
        match name {
            "token" => once(&mut self.token, text(value)?),
            "manufacturer" => once(&mut self.manufacturer, text(value)?),
            "serial" => once(&mut self.serial, text(value)?),
            "model" => once(&mut self.model, text(value)?),
            "slot-id" => once(&mut self.slot_id, value.parse().map_err(|_| KeyUriError::Shape(SHAPE))?),
            "object" => once(&mut self.object, text(value)?),
            "id" => once(&mut self.id, bytes(value)?),
            "type" if value == "secret-key" => Ok(()),
            "pin-value" => Err(KeyUriError::Secret("pin-value")),
            _ => Err(KeyUriError::Shape(SHAPE)),
        }
    }

    fn take_query_attribute(&mut self, name: &str, value: &str) -> Result<(), KeyUriError> {
        match name {
            "module-path" => once(&mut self.module_path, path(value)?),
            "pin-source" => {
                let value = text(value)?;
                once(&mut self.pin_source, path(value.strip_prefix("file:").unwrap_or(&value))?)
            }
            "pin-value" => Err(KeyUriError::Secret("pin-value")),
            _ => Err(KeyUriError::Shape(SHAPE)),
        }
    }
}

/// An attribute may be there once only (RFC 7512 §2.3).
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), KeyUriError> {
    if place.replace(value).is_some() { Err(KeyUriError::Shape(SHAPE)) } else { Ok(()) }
}

fn path(value: &str) -> Result<PathBuf, KeyUriError> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() { Ok(path) } else { Err(KeyUriError::Shape(SHAPE)) }
}

fn text(value: &str) -> Result<String, KeyUriError> {
    let text = String::from_utf8(bytes(value)?).map_err(|_| KeyUriError::Shape(SHAPE))?;
    if text.is_empty() || text.contains('\0') { Err(KeyUriError::Shape(SHAPE)) } else { Ok(text) }
}

/// Percent-decodes (RFC 3986 §2.1); a stray `%` is refused.
fn bytes(value: &str) -> Result<Vec<u8>, KeyUriError> {
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let hex = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
        decoded.push(match byte {
            b'%' => match (hex(rest.next()), hex(rest.next())) {
                (Some(high), Some(low)) => {
                    u8::try_from(high * 16 + low).expect("two hex digits are below 256")
                }
                _ => return Err(KeyUriError::Shape(SHAPE)),
            },
            other => other,
        });
    }
    Ok(decoded)
}

impl fmt::Display for Pkcs11Uri {
    /// Path attributes in the order of RFC 7512's table, `id` all percent-encoded as its §2.3 recommends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot_id = self.slot_id.map(|id| id.to_string());
        let id = self.id.as_ref().map(|id| id.iter().map(|byte| format!("%{byte:02X}")).collect::<String>());
        let texts = [
            ("token", &self.token),
            ("manufacturer", &self.manufacturer),
            ("serial", &self.serial),
            ("model", &self.model),
            ("slot-id", &slot_id),
            ("object", &self.object),
        ];
        let mut attributes: Vec<String> = texts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?))))
            .collect();
        attributes.extend(id.map(|id| format!("id={id}")));
        let query: Vec<String> = [("module-path", &self.module_path), ("pin-source", &self.pin_source)]
            .into_iter()
            .filter_map(|(name, path)| Some(format!("{name}={}", encoded(&path.as_ref()?.to_string_lossy()))))
            .collect();
        write!(f, "pkcs11:{}", attributes.join(";"))?;
        if query.is_empty() { Ok(()) } else { write!(f, "?{}", query.join("&")) }
    }
}

fn encoded(text: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~/".contains(&c);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_read_and_written_canonically() {
        let uri = Pkcs11Uri::parse("id=%01a;object=ebs%20key;token=t;type=secret-key?pin-source=file:/run/pin&module-path=/usr/lib/m.so")
            .expect("a URI");
        assert_eq!(uri.object.as_deref(), Some("ebs key"));
        assert_eq!(uri.id.as_deref(), Some(&[1, b'a'][..]));
        let canonical =
            "pkcs11:token=t;object=ebs%20key;id=%01%61?module-path=/usr/lib/m.so&pin-source=/run/pin";
        assert_eq!(uri.to_string(), canonical);
        assert_eq!(Pkcs11Uri::parse(&canonical["pkcs11:".len()..]), Ok(uri));
    }

    #[test]
    fn a_pin_in_the_uri_is_refused_by_name() {
        for text in ["object=a?pin-value=1234", "object=a;pin-value=1234"] {
            let error = Pkcs11Uri::parse(text).expect_err("a PIN");
            assert_eq!(error, KeyUriError::Secret("pin-value"));
            assert!(!error.to_string().contains("1234"));
        }
    }

    #[test]
    fn what_could_name_another_key_is_refused() {
        for text in [
            "",
            "token=t",
            "object=a;object=b",
            "object=a;x-vendor=b",
            "object=a?module-name=b",
            "object=a?module-path=relative.so",
            "object=%",
            "object=%zz",
            "object=%00",
            "object=%ff",
            "object=",
            "object=a;type=private",
            "object",
        ] {
            assert!(matches!(Pkcs11Uri::parse(text), Err(KeyUriError::Shape(_))), "{text}");
        }
    }
}
