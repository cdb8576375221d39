//! The verbs about the audit log: judging it and reading it. They change nothing, and are not in it.

use super::audit::{AuditFinding, AuditRecords, AuditReport};
use super::{LocalKms, store_failure};
use crate::error::{KmsError, KmsErrorKind};

impl LocalKms {
    /// Reads the whole audit log and says what is missing, altered, out of order or forged. `first` is the record it must
    /// begin with: 1, unless older files have been moved away. With `check_seal` the root key is opened, for which a
    /// passphrase may be asked.
    ///
    /// Errors are of the store: what is wrong with the log is in the report.
    pub fn verify_audit(&self, first: u64, check_seal: bool) -> Result<AuditReport, KmsError> {
        let failed = |error| store_failure("VerifyAuditLog", "the audit log", &error);
        let exists = self.store.root_key_protection().map_err(failed)?.is_some();
        let root = (check_seal && exists).then(|| self.store.root_key()).transpose().map_err(failed)?;
        let judged = self.store.audit_trail().verify(self.store.dir(), first, root.as_deref());
        let mut report = judged.map_err(|source| self.unreadable(source))?;
        if first == 1 && !report.follows_unchained_log {
            self.find_older_key(&mut report).map_err(failed)?;
        }
        Ok(report)
    }

    /// The audit log's records as documents, oldest first, unjudged.
    pub fn audit_records(&self) -> Result<AuditRecords, KmsError> {
        AuditRecords::of(self.store.dir()).map_err(|source| self.unreadable(source))
    }

    /// A log that was begun anew, anchor and all, is younger than the keys.
    fn find_older_key(&self, report: &mut AuditReport) -> Result<(), super::StoreError> {
        let since = report.since.map(super::seconds);
        for id in self.store.key_ids()? {
            let Some(key) = self.store.key(id)? else { continue };
            if since.is_none_or(|since| key.creation_date < since) {
                report.find(AuditFinding::KeyOlderThanLog { key: self.scope.key_arn(id) });
            }
        }
        Ok(())
    }

    fn unreadable(&self, source: std::io::Error) -> KmsError {
        KmsError {
            kind: KmsErrorKind::Misconfigured,
            operation: "VerifyAuditLog",
            key: self.store.audit_trail().path().display().to_string(),
            message: "the audit log cannot be read".to_owned(),
            request_id: "none".to_owned(),
            source: Some(source),
        }
    }
}
