//! `sealblk audit …`: the embedded key store's log of calls, judged and shown.

use std::collections::VecDeque;

use sealblk_kms::local::{AuditReport, LocalKms};
use serde_json::{Value, json};

use crate::args::{AuditCommand, AuditFilter};
use crate::exit::Failure;
use crate::kms;
use crate::output::{Output, table};
use crate::place::Place;

/// Does what `sealblk audit` was asked for.
pub(crate) fn run(command: AuditCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    let store = kms::store(&place.open_pool()?, place)?;
    match command {
        AuditCommand::Verify { first, without_seal } => verify(&store, first, !without_seal, output),
        AuditCommand::List { filter, last } => list(&store, &filter, last, output),
        AuditCommand::Show { record } => show(&store, &record, output),
    }
}

fn verify(store: &LocalKms, first: u64, check_seal: bool, output: &Output) -> Result<(), Failure> {
    let report = store.verify_audit(first, check_seal)?;
    output.result(&document(&report), || summary(&report))?;
    let count =
        u64::try_from(report.findings.len()).unwrap_or(u64::MAX).saturating_add(report.further_findings);
    if report.is_clean() { Ok(()) } else { Err(Failure::AuditFindings { count }) }
}

fn document(report: &AuditReport) -> Value {
    let mut document = json!(report);
    document["Intact"] = report.is_clean().into();
    if let Some(findings) = document["Findings"].as_array_mut() {
        for (told, finding) in findings.iter_mut().zip(&report.findings) {
            told["Message"] = finding.to_string().into();
        }
    }
    document
}

fn summary(report: &AuditReport) -> String {
    let mut lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    if report.further_findings > 0 {
        lines.push(format!("and {} findings more", report.further_findings));
    }
    let last = match report.last_sequence {
        0 if report.follows_unchained_log => {
            "all records are from before they were chained; the next call begins the chain".to_owned()
        }
        0 => "no records".to_owned(),
        last => format!("{} records, the last one number {last}, hash {}", report.records, report.last_hash),
    };
    let seal = match (report.sealed_sequence, report.seal_checked) {
        (Some(sealed), true) => format!("sealed up to {sealed}"),
        (Some(sealed), false) => format!("sealed up to {sealed}, which was not checked"),
        (None, _) => "not sealed yet".to_owned(),
    };
    if report.follows_unchained_log && report.last_sequence > 0 {
        lines.push(
            "the log goes on one whose records were not chained; that one's bytes are as they were"
                .to_owned(),
        );
    }
    let verdict = if report.is_clean() { "intact" } else { "NOT INTACT" };
    lines.push(format!("{verdict}: {last}; {seal}"));
    if report.recovered > 0 {
        lines.push(format!("{} lines were cut short by a killed process and recovered", report.recovered));
    }
    lines.join("\n")
}

fn list(store: &LocalKms, filter: &AuditFilter, last: usize, output: &Output) -> Result<(), Failure> {
    let mut kept = VecDeque::new();
    for record in store.audit_records()? {
        let record = record?;
        if !matches(&record, filter) {
            continue;
        }
        kept.push_back(record);
        if last > 0 && kept.len() > last {
            kept.pop_front();
        }
    }
    let rows: Vec<Vec<String>> = kept.iter().map(row).collect();
    Ok(output.result(&json!({ "Events": kept }), || {
        table(&["RECORD", "TIME", "EVENT", "PRINCIPAL", "VOLUME", "KEY", "ERROR"], &[0], &rows)
    })?)
}

fn show(store: &LocalKms, wanted: &str, output: &Output) -> Result<(), Failure> {
    let is_wanted = |record: &Value| {
        let named = ["requestID", "eventID"].iter().any(|name| record[*name] == wanted);
        named || record["sequence"].as_u64().is_some_and(|number| number.to_string() == wanted)
    };
    for record in store.audit_records()? {
        let record = record?;
        if is_wanted(&record) {
            let text = || serde_json::to_string_pretty(&record).unwrap_or_default();
            return Ok(output.result(&record, text)?);
        }
    }
    Err(Failure::NoSuchRecord(wanted.to_owned()))
}

fn row(record: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    let key = text(&record["resources"][0]["ARN"]);
    vec![
        record["sequence"].as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string()),
        text(&record["eventTime"]),
        text(&record["eventName"]),
        text(&record["userIdentity"]["principalId"]),
        resource(&record["requestParameters"]).unwrap_or_else(|| "-".to_owned()),
        key.rsplit('/').next().unwrap_or("-").to_owned(),
        text(&record["errorCode"]),
    ]
}

/// The volume or snapshot that a call is about: the value of `aws:ebs:id` in whichever context it has.
fn resource(parameters: &Value) -> Option<String> {
    let members = parameters.as_object()?;
    let own = members.get("aws:ebs:id").and_then(Value::as_str).map(str::to_owned);
    own.or_else(|| members.values().find_map(resource))
}

fn matches(record: &Value, filter: &AuditFilter) -> bool {
    let about_key = |key: &String| {
        let ends = |text: &str| text == key || text.rsplit('/').next() == Some(key.as_str());
        let resources = record["resources"].as_array();
        let listed = resources.into_iter().flatten().filter_map(|resource| resource["ARN"].as_str());
        listed.chain(record["requestParameters"]["keyId"].as_str()).any(ends)
    };
    let about_volume = |volume: &String| holds(&record["requestParameters"], volume);
    filter.key.as_ref().is_none_or(about_key)
        && filter.volume.as_ref().is_none_or(about_volume)
        && filter.event.as_ref().is_none_or(|event| record["eventName"] == event.as_str())
        && (!filter.errors || record.get("errorCode").is_some())
}

/// Whether a string somewhere in `value` is `text`.
fn holds(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(values) => values.iter().any(|value| holds(value, text)),
        Value::Object(members) => members.values().any(|value| holds(value, text)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> AuditFilter {
        AuditFilter { key: None, volume: None, event: None, errors: false }
    }

    #[test]
    fn a_filter_finds_keys_and_volumes_wherever_a_call_names_them() {
        let record = json!({
            "eventName": "CreateGrant",
            "requestParameters": { "constraints": { "encryptionContextSubset": { "aws:ebs:id": "vol-1" } } },
            "resources": [{ "ARN": "arn:aws:kms:local:000000000000:key/1234" }],
        });
        assert_eq!(resource(&record["requestParameters"]).as_deref(), Some("vol-1"));
        for key in ["1234", "arn:aws:kms:local:000000000000:key/1234"] {
            assert!(matches(&record, &AuditFilter { key: Some(key.to_owned()), ..filter() }), "{key}");
        }
        assert!(!matches(&record, &AuditFilter { key: Some("234".to_owned()), ..filter() }));
        assert!(matches(&record, &AuditFilter { volume: Some("vol-1".to_owned()), ..filter() }));
        assert!(!matches(&record, &AuditFilter { volume: Some("vol-2".to_owned()), ..filter() }));
        assert!(!matches(&record, &AuditFilter { errors: true, ..filter() }));
    }
}
