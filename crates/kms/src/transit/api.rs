//! The HTTP side of the transit engine: one server, a session with a token, requests, and what an answer means.

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::{HeaderValue, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body as ReplyBody};
use zeroize::Zeroizing;

use super::TransitConfig;
use crate::attempt::Attempt;
use crate::context::EncryptionContext;
use crate::error::{KmsError, KmsErrorKind};
use crate::providers::{AppRole, TransitLogin};
use crate::secret_file;

/// The longest answer taken, in bytes. The buffer is that large from the start: growing would leave copies behind.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// The longest part of a server's own words that an error repeats.
const ECHO_CHARS_MAX: usize = 300;

/// One server.
#[derive(Debug)]
pub(super) struct Api {
    config: TransitConfig,
    agent: Agent,
}

/// A logged-in caller, for one call.
pub(super) struct Session<'a> {
    api: &'a Api,
    attempt: Attempt<'a>,
    token: Zeroizing<String>,
    /// Made by our own login: ends with the session.
    own: bool,
}

impl Api {
    pub(super) fn new(config: &TransitConfig) -> Result<Self, KmsError> {
        let attempt = Attempt { operation: "OpenProvider", key: &config.address };
        let roots = match &config.ca_file {
            None => Vec::new(),
            Some(path) => {
                let wrong = |why: String| {
                    let message =
                        format!("the certificate authorities in {} cannot be used: {why}", path.display());
                    attempt.fail(KmsErrorKind::Misconfigured, message)
                };
                let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
                let items =
                    parse_pem(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| wrong(e.to_string()))?;
                let certificates = items.into_iter().filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                });
                let roots: Vec<_> = certificates.collect();
                if roots.is_empty() {
                    return Err(wrong("there is no certificate in it".to_owned()));
                }
                roots
            }
        };
        if roots.is_empty() && config.address.starts_with("https:") {
            let message = "a file with the server's certificate authorities is needed: sealblk kms configure transit --ca-file";
            return Err(attempt.fail(KmsErrorKind::Misconfigured, message));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            // A token goes to the server it is for and to no other.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(Duration::from_millis(config.timeout_ms)))
            .build();
        Ok(Self { config: config.clone(), agent: agent.into() })
    }

    pub(super) fn address(&self) -> &str {
        &self.config.address
    }

    pub(super) fn log_in<'a>(&'a self, attempt: Attempt<'a>) -> Result<Session<'a>, KmsError> {
        let secret =
            |what, path| secret_file::read(what, path).map_err(|error| attempt.misconfigured(&error));
        match &self.config.login {
            TransitLogin::TokenFile(path) => {
                Ok(Session { api: self, attempt, token: secret("token", path)?, own: false })
            }
            TransitLogin::AppRole(AppRole { mount, role_id_file, secret_id_file }) => {
                let mut body = Body::new();
                body.text("role_id", &secret("role id", role_id_file)?);
                body.text("secret_id", &secret("secret id", secret_id_file)?);
                let nobody = Session { api: self, attempt, token: Zeroizing::default(), own: false };
                let reply = nobody.exchange(&format!("auth/{mount}/login"), Some(&body))?;
                if reply.status != 200 {
                    let denied = [400, 403].contains(&reply.status);
                    let kind = if denied { KmsErrorKind::Denied } else { reply.kind() };
                    let message = format!("{}: the AppRole login failed: {}", self.address(), reply.words());
                    return Err(attempt.fail(kind, message));
                }
                let login: Login<'_> = reply.parse()?;
                let token = Zeroizing::new(login.auth.client_token.to_owned());
                Ok(Session { api: self, attempt, token, own: true })
            }
        }
    }
}

#[derive(Deserialize)]
struct Login<'a> {
    #[serde(borrow)]
    auth: Auth<'a>,
}

#[derive(Deserialize)]
struct Auth<'a> {
    client_token: &'a str,
}

impl<'a> Session<'a> {
    pub(super) fn get(&self, path: &str) -> Result<Reply<'a>, KmsError> {
        self.succeed(path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Body) -> Result<Reply<'a>, KmsError> {
        self.succeed(path, Some(body))
    }

    fn succeed(&self, path: &str, body: Option<&Body>) -> Result<Reply<'a>, KmsError> {
        let reply = self.exchange(path, body)?;
        if reply.status == 200 { Ok(reply) } else { Err(self.refusal(path, body.is_some(), &reply)) }
    }

    fn exchange(&self, path: &str, body: Option<&Body>) -> Result<Reply<'a>, KmsError> {
        let url = format!("{}/v1/{path}", self.api.address());
        let sent = match body {
            None => self.with_headers(self.api.agent.get(&url)).call(),
            Some(body) => self.with_headers(self.api.agent.post(&url)).send(body.finished().as_bytes()),
        };
        let mut response = sent.map_err(|error| self.no_answer(&error))?;
        Reply::read(self.attempt, &mut response).map_err(|error| self.no_answer(&error))
    }

    fn with_headers<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        let mut request = request.header("X-Vault-Request", "true");
        if let Some(namespace) = &self.api.config.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        // Without a token only while logging in. One that is no header's text is refused by the server as missing.
        if let Ok(mut token) = HeaderValue::from_str(&self.token)
            && !self.token.is_empty()
        {
            token.set_sensitive(true);
            request = request.header("X-Vault-Token", token);
        }
        request
    }

    /// No answer, or none that can be trusted.
    fn no_answer(&self, error: &ureq::Error) -> KmsError {
        let untrusted = match error {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => true,
            ureq::Error::Io(error) => error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()),
            _ => false,
        };
        let kind = if untrusted { KmsErrorKind::Misconfigured } else { KmsErrorKind::Unreachable };
        self.attempt.fail(kind, format!("{}: {error}", self.api.address()))
    }

    /// What an answer other than 200 means.
    fn refusal(&self, path: &str, posted: bool, reply: &Reply<'_>) -> KmsError {
        let words = reply.words();
        let fail = |kind, message| self.attempt.fail(kind, format!("{}: {message}", self.api.address()));
        match reply.status {
            403 if !self.token_is_valid() => fail(
                KmsErrorKind::Denied,
                "the token is not valid: it has expired, was revoked, or is not this server's".to_owned(),
            ),
            403 => {
                let capability = if posted { "update" } else { "read" };
                let message = format!(
                    "the token's policies do not allow this; they must say: path \"{path}\" {{ capabilities = [\"{capability}\"] }}"
                );
                fail(KmsErrorKind::Denied, message)
            }
            404 => fail(KmsErrorKind::NotFound, format!("there is nothing at {path}")),
            400 if words.contains("key not found") || words.contains("no handler for route") => {
                fail(KmsErrorKind::NotFound, words)
            }
            400 if words.contains("too old") => fail(
                KmsErrorKind::Disabled,
                format!(
                    "the version of the key that wrapped it is below the key's min_decryption_version: {words}"
                ),
            ),
            400 if self.attempt.operation == "Decrypt" => fail(
                KmsErrorKind::InvalidCiphertext,
                format!(
                    "the wrapped key is damaged, another key's, or was made for another encryption context: {words}"
                ),
            ),
            _ => fail(reply.kind(), words),
        }
    }

    /// Whether the token would be let in at all: what a 403 does not tell.
    fn token_is_valid(&self) -> bool {
        self.exchange("auth/token/lookup-self", None).is_ok_and(|reply| reply.status != 403)
    }
}

impl Drop for Session<'_> {
    /// A token that was made for this call would live on for its whole term otherwise. If that fails, it does.
    fn drop(&mut self) {
        if self.own {
            let _ = self.exchange("auth/token/revoke-self", Some(&Body::new()));
        }
    }
}

/// A server's answer; wiped when dropped, since it may hold a data key.
pub(super) struct Reply<'a> {
    attempt: Attempt<'a>,
    status: u16,
    bytes: Zeroizing<Vec<u8>>,
    length: usize,
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

impl<'a> Reply<'a> {
    pub(super) fn read(
        attempt: Attempt<'a>,
        response: &mut Response<ReplyBody>,
    ) -> Result<Self, ureq::Error> {
        let status = response.status().as_u16();
        let mut bytes = Zeroizing::new(vec![0; REPLY_BYTES_MAX]);
        let mut reader = response.body_mut().as_reader();
        let mut length: usize = 0;
        while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match reader.read(rest) {
                Ok(0) => break,
                Ok(count) => length = length.saturating_add(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ureq::Error::Io(error)),
            }
        }
        Ok(Self { attempt, status, bytes, length })
    }

    fn parse<'r, T: Deserialize<'r>>(&'r self) -> Result<T, KmsError> {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        serde_json::from_slice(bytes).map_err(|error| {
            // Not serde's message: it quotes what it read, which may be a key.
            let message = format!("the server's answer is not one: {:?} error in it", error.classify());
            self.attempt.fail(KmsErrorKind::Misconfigured, message)
        })
    }

    /// The answer's `data`.
    pub(super) fn data<'r, T: Deserialize<'r>>(&'r self) -> Result<T, KmsError> {
        self.parse::<Envelope<T>>().map(|envelope| envelope.data)
    }

    /// What went wrong, in the server's words, printable and not too long.
    pub(super) fn words(&self) -> String {
        let errors = self.parse::<Errors>().map(|reply| reply.errors.join("; ")).unwrap_or_default();
        let words: Vec<&str> = errors.split_whitespace().collect();
        let words: String =
            words.join(" ").chars().filter(|c| !c.is_control()).take(ECHO_CHARS_MAX).collect();
        if words.is_empty() {
            format!("HTTP status {}", self.status)
        } else {
            format!("{words} ({})", self.status)
        }
    }

    /// What a status means that no call has a meaning of its own for: 429 too many requests, 472 and 473 standby,
    /// 5xx sealed, starting or broken.
    fn kind(&self) -> KmsErrorKind {
        match self.status {
            429 | 472 | 473 | 500.. => KmsErrorKind::Unreachable,
            403 => KmsErrorKind::Denied,
            404 => KmsErrorKind::NotFound,
            400..=499 => KmsErrorKind::InvalidRequest,
            _ => KmsErrorKind::Misconfigured,
        }
    }
}

/// A JSON object that is built in one buffer, large enough from the start and wiped when dropped.
pub(super) struct Body(Zeroizing<String>);

impl Body {
    fn new() -> Self {
        let mut text = Zeroizing::new(String::with_capacity(REPLY_BYTES_MAX));
        text.push('{');
        Self(text)
    }

    /// An object with the context, both ways.
    pub(super) fn with_context(context: &EncryptionContext) -> Self {
        let mut canonical = Vec::new();
        context.append_canonical(&mut canonical);
        let canonical = STANDARD.encode(canonical);
        let mut body = Self::new();
        body.text("associated_data", &canonical);
        body.text("context", &canonical);
        body
    }

    /// A member; its characters are written as they are where JSON allows that, else escaped.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push('"');
        for char in value.chars() {
            match char {
                '"' | '\\' => self.0.extend(['\\', char]),
                char if char.is_control() => self.0.push_str(&format!("\\u{:04x}", u32::from(char))),
                char => self.0.push(char),
            }
        }
        self.0.push('"');
    }

    /// A member.
    pub(super) fn number(&mut self, name: &str, value: usize) {
        self.name(name);
        self.0.push_str(&value.to_string());
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.extend(["\"", name, "\":"]);
    }

    fn finished(&self) -> Zeroizing<String> {
        let mut whole = Zeroizing::new(String::with_capacity(self.0.len() + 1));
        whole.extend([self.0.as_str(), "}"]);
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_json_whatever_is_in_it() {
        let mut body = Body::with_context(&EncryptionContext::for_resource("vol-1"));
        body.text("x", "a\"b\\c\nd\u{7f}é");
        body.number("bits", 512);
        let value: serde_json::Value = serde_json::from_str(&body.finished()).expect("JSON");
        assert_eq!((value["x"].as_str(), value["bits"].as_u64()), (Some("a\"b\\c\nd\u{7f}é"), Some(512)));
        assert_eq!(value["context"], value["associated_data"]);
        assert_eq!(Body::new().finished().as_str(), "{}");
    }
}
