//! One token with a session logged in: finding it, the key in it, and what its refusals mean.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;

use super::Pkcs11Config;
use super::uri::Pkcs11Uri;
use crate::attempt::Attempt;
use crate::error::{KmsError, KmsErrorKind};
use crate::secret_file;
use crate::service::{KeyMetadata, KeyState};

/// AES-256.
const KEY_BYTES: u64 = 32;

/// A token that we are logged in to.
pub(super) struct Token<'a> {
    attempt: Attempt<'a>,
    uri: Pkcs11Uri,
    /// Before the module's context: it ends first.
    pub(super) session: Session,
    _module: Pkcs11,
}

impl<'a> Token<'a> {
    /// Loads the module, finds the one token that `uri` names, and logs in.
    pub(super) fn log_in(
        config: &Pkcs11Config,
        attempt: Attempt<'a>,
        uri: Pkcs11Uri,
    ) -> Result<Self, KmsError> {
        let name = config.module.display();
        let module = Pkcs11::new(&config.module).map_err(|error| {
            attempt.fail(
                KmsErrorKind::Misconfigured,
                format!("the PKCS#11 module {name} does not load: {error}"),
            )
        })?;
        let failed = |error: Error| meaning(attempt, &error);
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(failed(error)),
        }
        let (slot, info) = find_token(&module, attempt, &uri)?;
        let session = module.open_ro_session(slot).map_err(failed)?;
        if info.login_required() {
            log_in(&session, attempt, &info, config, &uri)?;
        }
        Ok(Self { attempt, uri, session, _module: module })
    }

    /// The one AES key that the URI names.
    pub(super) fn key(&self) -> Result<ObjectHandle, KmsError> {
        let mut template = vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true)];
        template.extend(self.uri.object.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec())));
        template.extend(self.uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        let found = self.session.find_objects(&template).map_err(|error| self.failed(&error))?;
        match found.as_slice() {
            [key] => Ok(*key),
            [] => Err(self.attempt.fail(KmsErrorKind::NotFound, "the token has no such secret key")),
            _ => {
                let message = format!("{} secret keys in the token have this name: add id=", found.len());
                Err(self.attempt.fail(KmsErrorKind::InvalidRequest, message))
            }
        }
    }

    /// What the key is, as far as its use for volumes goes.
    pub(super) fn describe(&self) -> Result<KeyMetadata, KmsError> {
        let key = self.key()?;
        let wanted = [
            AttributeType::KeyType,
            AttributeType::ValueLen,
            AttributeType::Private,
            AttributeType::Encrypt,
            AttributeType::Decrypt,
        ];
        let attributes = self.session.get_attributes(key, &wanted).map_err(|error| self.failed(&error))?;
        let has = |wanted: Attribute| attributes.contains(&wanted);
        let refuse = |why: &str| Err(self.attempt.fail(KmsErrorKind::InvalidKeyUsage, why));
        if !has(Attribute::KeyType(KeyType::AES)) || !attributes.iter().any(is_256_bits) {
            return refuse("only an AES key of 256 bits can wrap data keys");
        }
        if !has(Attribute::Encrypt(true)) || !has(Attribute::Decrypt(true)) {
            return refuse("the key may not encrypt and decrypt (CKA_ENCRYPT, CKA_DECRYPT)");
        }
        if !has(Attribute::Private(true)) {
            return refuse("the key is not private (CKA_PRIVATE): it works without a PIN, for everybody");
        }
        let name = self.uri.object.clone().unwrap_or_default();
        let metadata = KeyMetadata::symmetric(name, self.attempt.key, KeyState::Enabled);
        Ok(KeyMetadata { origin: "AWS_CLOUDHSM".to_owned(), ..metadata })
    }

    pub(super) fn failed(&self, error: &Error) -> KmsError {
        meaning(self.attempt, error)
    }
}

fn is_256_bits(attribute: &Attribute) -> bool {
    matches!(attribute, Attribute::ValueLen(length) if **length == KEY_BYTES)
}

/// The one token with everything that the URI says of it.
fn find_token(module: &Pkcs11, attempt: Attempt<'_>, uri: &Pkcs11Uri) -> Result<(Slot, TokenInfo), KmsError> {
    let slots = module.get_slots_with_initialized_token().map_err(|error| meaning(attempt, &error))?;
    let mut matching = Vec::new();
    for slot in slots {
        // One that is pulled out meanwhile is not there.
        let Ok(info) = module.get_token_info(slot) else { continue };
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let all = is(&uri.token, info.label())
            && is(&uri.serial, info.serial_number())
            && is(&uri.manufacturer, info.manufacturer_id())
            && is(&uri.model, info.model())
            && uri.slot_id.is_none_or(|id| id == slot.id());
        if all {
            matching.push((slot, info));
        }
    }
    match matching.len() {
        0 => Err(attempt.fail(KmsErrorKind::NotFound, "the module has no such token")),
        1 => Ok(matching.remove(0)),
        many => {
            let message = format!("{many} tokens match: add token= or serial=");
            Err(attempt.fail(KmsErrorKind::InvalidRequest, message))
        }
    }
}

fn log_in(
    session: &Session,
    attempt: Attempt<'_>,
    info: &TokenInfo,
    config: &Pkcs11Config,
    uri: &Pkcs11Uri,
) -> Result<(), KmsError> {
    let file = uri.pin_source.as_ref().or(config.pin_file.as_ref());
    let pin = match file {
        None if info.protected_authentication_path() => None,
        None => {
            let message = "the token wants a PIN: name its file with sealblk kms configure pkcs11 --pin-file, or pin-source= in the URI";
            return Err(attempt.fail(KmsErrorKind::Misconfigured, message));
        }
        Some(file) => {
            let pin = secret_file::read("PIN", file).map_err(|error| attempt.misconfigured(&error))?;
            Some(AuthPin::from(pin.as_str()))
        }
    };
    let outcome = session.login(UserType::User, pin.as_ref());
    let wrong_pin = || {
        let file = file.map_or_else(|| "as entered".to_owned(), |file| format!("in {}", file.display()));
        let last = if info.user_pin_final_try() { "; the next wrong one locks the token" } else { "" };
        attempt.fail(KmsErrorKind::Denied, format!("the PIN {file} is wrong{last}"))
    };
    match outcome {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)) => {
            Err(wrong_pin())
        }
        Err(Error::Pkcs11(RvError::PinLocked, _)) => Err(attempt.fail(
            KmsErrorKind::Denied,
            "the token is locked after too many wrong PINs; its security officer can unlock it",
        )),
        Err(Error::Pkcs11(RvError::UserPinNotInitialized, _)) => {
            Err(attempt.fail(KmsErrorKind::Misconfigured, "the token has no user PIN yet"))
        }
        Err(error) => Err(meaning(attempt, &error)),
    }
}

/// What a refusal of the module means for the caller.
fn meaning(attempt: Attempt<'_>, error: &Error) -> KmsError {
    let Error::Pkcs11(value, function) = error else { return attempt.misconfigured(error) };
    let fail = |kind, what: &str| attempt.fail(kind, format!("{what} ({function}: {value:?})"));
    let decrypting = attempt.operation == "Decrypt";
    match value {
        RvError::DeviceError
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized => fail(KmsErrorKind::Unreachable, "the token does not answer"),
        RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent | RvError::KeySizeRange => {
            fail(KmsErrorKind::InvalidKeyUsage, "the key cannot be used for this")
        }
        RvError::MechanismInvalid | RvError::MechanismParamInvalid => {
            fail(KmsErrorKind::Misconfigured, "the token has no AES-GCM as it is needed")
        }
        RvError::UserNotLoggedIn => fail(KmsErrorKind::Denied, "the token wants a login"),
        // SoftHSM has no better word for a tag that does not match.
        RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange | RvError::GeneralError
            if decrypting =>
        {
            fail(
                KmsErrorKind::InvalidCiphertext,
                "the wrapped key is damaged, another key's, or was made for another encryption context",
            )
        }
        _ => fail(KmsErrorKind::Misconfigured, "the module refused"),
    }
}
