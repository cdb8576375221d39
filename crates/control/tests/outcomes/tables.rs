//! ebs.md B.1 and B.2, row by row, through the operations themselves: what comes of each combination, that `explain` says
//! so beforehand, and that what is refused leaves nothing.

use sealblk_control::{ControlError, ShareWith, SnapshotId};

use crate::region::{Region, Said, Who, copying, creation};

/// Where the data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Nothing,
    OwnPlain,
    OwnEncrypted,
    SharedPlain,
    SharedEncrypted,
}
use Origin::{Nothing, OwnEncrypted, OwnPlain, SharedEncrypted, SharedPlain};

/// Under which key the new object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Under {
    /// It is not encrypted.
    None,
    /// The default key of the account that makes it.
    Default,
    /// The source's.
    Source,
    /// The one that was named.
    Named,
    /// It is refused, with this code.
    Refused(&'static str),
}
use Under::{Default, Named, None as Plain, Refused, Source};

const DEPENDENCY: Under = Refused("InvalidParameterDependency");

/// Row, `Encrypted` set, by default, source; without a key, with a key.
#[rustfmt::skip]
const VOLUMES: [(u8, bool, bool, Origin, Under, Under); 20] = [
    ( 1, false, false, Nothing,         Plain,   DEPENDENCY),
    ( 2, false, false, OwnPlain,        Plain,   DEPENDENCY),
    ( 3, false, false, OwnEncrypted,    Source,  DEPENDENCY),
    ( 4, false, false, SharedPlain,     Plain,   DEPENDENCY),
    ( 5, false, false, SharedEncrypted, Default, DEPENDENCY),
    ( 6, true,  false, Nothing,         Default, Named),
    ( 7, true,  false, OwnPlain,        Default, Named),
    ( 8, true,  false, OwnEncrypted,    Source,  Named),
    ( 9, true,  false, SharedPlain,     Default, Named),
    (10, true,  false, SharedEncrypted, Default, Named),
    (11, false, true,  Nothing,         Default, DEPENDENCY),
    (12, false, true,  OwnPlain,        Default, DEPENDENCY),
    (13, false, true,  OwnEncrypted,    Source,  DEPENDENCY),
    (14, false, true,  SharedPlain,     Default, DEPENDENCY),
    (15, false, true,  SharedEncrypted, Default, DEPENDENCY),
    (16, true,  true,  Nothing,         Default, Named),
    (17, true,  true,  OwnPlain,        Default, Named),
    (18, true,  true,  OwnEncrypted,    Source,  Named),
    (19, true,  true,  SharedPlain,     Default, Named),
    (20, true,  true,  SharedEncrypted, Default, Named),
];

/// By default, source, `Encrypted`; without a key, with a key.
#[rustfmt::skip]
const COPIES: [(bool, Origin, Option<bool>, Under, Under); 15] = [
    (false, OwnPlain,        None,        Plain,   DEPENDENCY),
    (false, OwnPlain,        Some(false), Plain,   Refused("InvalidParameterCombination")),
    (false, OwnPlain,        Some(true),  Default, Named),
    (false, OwnEncrypted,    None,        Default, DEPENDENCY),
    (false, OwnEncrypted,    Some(false), Default, Refused("InvalidParameterCombination")),
    (false, OwnEncrypted,    Some(true),  Default, Named),
    (false, SharedPlain,     None,        Plain,   DEPENDENCY),
    (false, SharedPlain,     Some(true),  Default, Named),
    (false, SharedEncrypted, None,        Default, DEPENDENCY),
    (false, SharedEncrypted, Some(true),  Default, Named),
    (true,  OwnPlain,        None,        Default, DEPENDENCY),
    (true,  OwnPlain,        Some(false), Default, Refused("InvalidParameterCombination")),
    (true,  OwnEncrypted,    Some(false), Default, Refused("InvalidParameterCombination")),
    (true,  SharedPlain,     None,        Default, DEPENDENCY),
    (true,  SharedEncrypted, Some(true),  Default, Named),
];

/// Two accounts, of which the second makes things, of its own snapshots and of the first one's.
struct Table {
    region: Region,
    default: String,
    named: String,
    own: String,
    snapshots: [(Origin, SnapshotId); 4],
}

const MAKER: Who = Who::Other;

impl Table {
    fn new() -> Self {
        let region = Region::new();
        let (shared_key, own) = (region.key(MAKER.other(), true), region.key(MAKER, false));
        let snapshot = |who: Who, key: Option<&String>| {
            let said = Said { encrypted: key.map(|_| true), key: key.cloned() };
            let volume = region.volume(who, None, &said).expect("a volume").volume_id;
            region.snapshot(who, volume).expect("a snapshot").snapshot_id
        };
        let snapshots = [
            (OwnPlain, snapshot(MAKER, None)),
            (OwnEncrypted, snapshot(MAKER, Some(&own))),
            (SharedPlain, snapshot(MAKER.other(), None)),
            (SharedEncrypted, snapshot(MAKER.other(), Some(&shared_key))),
        ];
        for (from, id) in snapshots {
            if [SharedPlain, SharedEncrypted].contains(&from) {
                let with = ShareWith::Accounts(vec![MAKER.account()]);
                region.pool(MAKER.other()).share_snapshot(id, &with).expect("it is shared");
            }
        }
        let encrypted = Said { encrypted: Some(true), key: None };
        let managed = region.volume(MAKER, None, &encrypted).expect("a volume");
        let default = managed.kms_key_id.expect("a key").to_string();
        let named = region.key(MAKER, false);
        Self { region, default, named, own, snapshots }
    }

    fn snapshot(&self, from: Origin) -> Option<SnapshotId> {
        self.snapshots.iter().find(|(of, _)| *of == from).map(|(_, id)| *id)
    }

    fn said(&self, encrypted: Option<bool>, with_key: bool) -> Said {
        Said { encrypted, key: with_key.then(|| self.named.clone()) }
    }

    /// What a key, or a refusal, is called in the tables.
    #[track_caller]
    fn under(&self, key: Result<Option<String>, ControlError>) -> Under {
        match key {
            Ok(None) => Plain,
            Ok(Some(key)) if key == self.default => Default,
            Ok(Some(key)) if key == self.own => Source,
            Ok(Some(key)) if key == self.named => Named,
            Ok(Some(key)) => panic!("nobody knows {key}"),
            Err(error) => Refused(error.code()),
        }
    }

    /// Everything that the account can see.
    fn objects(&self) -> usize {
        let pool = self.region.pool(MAKER);
        pool.list_volumes().expect("volumes").len() + pool.list_snapshots().expect("snapshots").len()
    }
}

#[test]
fn r45_r67_a_volume_of_every_row_is_what_the_table_says() {
    let table = Table::new();
    for (row, set, by_default, from, without_key, with_key) in VOLUMES {
        let directory = table.region.directory(MAKER);
        directory.set_encryption_by_default(by_default).expect("the setting");
        for (key, expected) in [(false, without_key), (true, with_key)] {
            let said = table.said(set.then_some(true), key);
            let what = format!("row {row}, a key: {key}");
            let request = creation(table.snapshot(from), &said);
            let explained = table.region.pool(MAKER).explain_create_volume(&request);
            if let Ok(explained) = &explained {
                assert_eq!(explained.row, row, "{what}");
            }
            assert_eq!(table.under(explained.map(|told| told.kms_key_id)), expected, "{what}: explained");
            let before = table.objects();
            let made = table.region.volume(MAKER, table.snapshot(from), &said);
            let made = made.map(|volume| volume.kms_key_id.map(|key| key.to_string()));
            let refused = made.is_err();
            assert_eq!(table.under(made), expected, "{what}");
            assert_eq!(
                table.objects(),
                before + usize::from(!refused),
                "{what}: what is refused leaves nothing"
            );
        }
    }
}

#[test]
fn r59_r60_r65_a_copy_of_every_row_is_what_the_table_says() {
    let table = Table::new();
    for (by_default, from, encrypted, without_key, with_key) in COPIES {
        let directory = table.region.directory(MAKER);
        directory.set_encryption_by_default(by_default).expect("the setting");
        let source = table.snapshot(from).expect("a snapshot");
        for (key, expected) in [(false, without_key), (true, with_key)] {
            let said = table.said(encrypted, key);
            let what = format!("by default {by_default}, {from:?}, {encrypted:?}, a key: {key}");
            let pool = table.region.pool(MAKER);
            let explained = pool.explain_copy_snapshot(&pool, &copying(source, &said));
            assert_eq!(table.under(explained.map(|told| told.kms_key_id)), expected, "{what}: explained");
            let before = table.objects();
            let made = table.region.copy(MAKER, source, &said);
            let made = made.map(|copy| {
                assert_eq!(copy.owner_id, MAKER.account(), "{what}: a copy is its maker's");
                assert!(copy.create_volume_permissions.is_empty(), "{what}: and shared with nobody");
                copy.kms_key_id.map(|key| key.to_string())
            });
            let refused = made.is_err();
            assert_eq!(table.under(made), expected, "{what}");
            assert_eq!(
                table.objects(),
                before + usize::from(!refused),
                "{what}: what is refused leaves nothing"
            );
        }
    }
}

#[test]
fn r58_a_chosen_default_key_takes_the_managed_ones_place_in_every_row() {
    let mut table = Table::new();
    let chosen = table.region.key(MAKER, false);
    table.region.pool(MAKER).modify_default_kms_key(&chosen).expect("the setting");
    table.default = chosen;
    for (row, set, by_default, from, without_key, _) in VOLUMES {
        table.region.directory(MAKER).set_encryption_by_default(by_default).expect("the setting");
        let request = creation(table.snapshot(from), &table.said(set.then_some(true), false));
        let told = table.region.pool(MAKER).explain_create_volume(&request).expect("an outcome");
        assert_eq!(table.under(Ok(told.kms_key_id)), without_key, "row {row}");
    }
}
