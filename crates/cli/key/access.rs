//! `sealblk key grants …` and `sealblk key policy …`: who may use a key.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sealblk_kms::local::{GrantConstraints, GrantEntry, LocalKms, NewGrant};
use sealblk_kms::{EncryptionContext, GrantId, Kms};
use serde_json::{Value, json};

use super::args::{CreateGrantArgs, GrantsCommand, PolicyCommand};
use crate::exit::Failure;
use crate::output::{Output, table};

/// More than any policy has, in bytes.
const POLICY_FILE_BYTES_MAX: u64 = 1 << 20;

/// Does what `sealblk key grants` was asked for.
pub(super) fn grants(store: &LocalKms, command: GrantsCommand, output: &Output) -> Result<(), Failure> {
    match command {
        GrantsCommand::Create(args) => {
            let grant = store.issue_grant(&new_grant(args))?;
            output.result(&grant, || grant.grant_id.0.clone())?;
        }
        GrantsCommand::List { key, grantee_principal, grant_id } => {
            let mut grants = store.list_grants(&key)?;
            let wanted =
                |filter: &Option<String>, value: &str| filter.as_ref().is_none_or(|text| text == value);
            grants.retain(|grant| {
                wanted(&grantee_principal, &grant.grantee_principal.0) && wanted(&grant_id, &grant.grant_id.0)
            });
            output.result(&json!({ "Grants": grants }), || list(&grants))?;
        }
        GrantsCommand::ListRetirable { principal } => {
            let grants = store.list_retirable_grants(&principal)?;
            output.result(&json!({ "Grants": grants }), || list(&grants))?;
        }
        GrantsCommand::Retire { key, grant, grant_token } => {
            match (grant_token, key, grant) {
                (Some(token), ..) => store.retire_grant_by_token(&token)?,
                (None, Some(key), Some(grant)) => store.retire_grant(&key, &GrantId(grant))?,
                _ => return Err(Failure::usage("a key and a grant, or --grant-token")),
            }
            output.result(&json!({}), || "retired".to_owned())?;
        }
        GrantsCommand::Revoke { key, grant } => {
            store.revoke_grant(&key, &GrantId(grant))?;
            output.result(&json!({}), || "revoked".to_owned())?;
        }
    }
    Ok(())
}

/// Does what `sealblk key policy` was asked for.
pub(super) fn policy(store: &LocalKms, command: PolicyCommand, output: &Output) -> Result<(), Failure> {
    match command {
        PolicyCommand::Get { key } => {
            let policy = store.get_key_policy(&key)?;
            let document = json!({ "PolicyName": "default", "Policy": policy.to_string() });
            output.result(&document, || format!("{policy:#}"))?;
        }
        PolicyCommand::Put { key, file } => {
            store.put_key_policy(&key, &read_policy(&file)?)?;
            output.result(&json!({}), || "put".to_owned())?;
        }
        PolicyCommand::PutIdentity { principal, name, file } => {
            store.put_identity_policy(&principal, &name, &read_policy(&file)?)?;
            output.result(&json!({}), || "put".to_owned())?;
        }
        PolicyCommand::GetIdentity { principal } => {
            let policies = json!(store.list_identity_policies(&principal)?);
            let document = json!({ "Principal": principal, "Policies": policies });
            output.result(&document, || format!("{policies:#}"))?;
        }
        PolicyCommand::DeleteIdentity { principal, name } => {
            store.delete_identity_policy(&principal, &name)?;
            output.result(&json!({}), || "deleted".to_owned())?;
        }
        PolicyCommand::ListIdentities => {
            let principals = store.list_identities()?;
            let names = || principals.iter().map(|principal| format!("{principal}\n")).collect::<String>();
            output.result(&json!({ "Principals": principals }), names)?;
        }
    }
    Ok(())
}

/// The policy in a file: any JSON; whether it is a policy is the store's question.
pub(super) fn read_policy(path: &Path) -> Result<Value, Failure> {
    let failed = |source| Failure::file("cannot read the policy", path, source);
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(POLICY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("the policy {} is not JSON: {error}", path.display())))
}

fn new_grant(args: CreateGrantArgs) -> NewGrant {
    let context = |pairs: Vec<_>| EncryptionContext::from_iter(pairs);
    let constraints = match (args.encryption_context_subset, args.encryption_context_equals) {
        (subset, _) if !subset.is_empty() => GrantConstraints::subset(context(subset)),
        (_, equals) if !equals.is_empty() => GrantConstraints::equals(context(equals)),
        _ => GrantConstraints::default(),
    };
    NewGrant {
        key: args.key,
        grantee: args.grantee_principal,
        retiring: args.retiring_principal,
        operations: args.operations,
        constraints,
        name: args.name,
    }
}

fn list(grants: &[GrantEntry]) -> String {
    let row = |grant: &GrantEntry| {
        let operations: Vec<_> = grant.operations.iter().map(|operation| format!("{operation:?}")).collect();
        vec![
            grant.grant_id.0.clone(),
            grant.grantee_principal.0.clone(),
            operations.join(","),
            serde_json::to_string(&grant.constraints).unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = grants.iter().map(row).collect();
    table(&["GRANT", "GRANTEE", "OPERATIONS", "CONSTRAINTS"], &[], &rows)
}
