//! Any sequence of operations of two accounts, against a model of what must hold whatever is done (requirements 8, 9, 37,
//! 39, 42, 49): nothing that comes from something encrypted is unencrypted; nothing but a rewrap changes a key; no setting
//! changes what exists; by-default leaves nothing new unencrypted; and nobody sees what is neither theirs nor shared.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sealblk_control::{ControlError, ListedVolume, ShareWith, SnapshotId, State, VolumeId};

use crate::region::{Region, Said, Who};

/// Each is one run; a failure prints its sequence, shrunk, and the seed is in the test's output.
const SEEDS: [u8; 4] = [1, 2, 3, 4];
const CASES: u32 = 3;

/// How a key is chosen: one of the four, or none.
type Choice = Option<usize>;

#[derive(Clone, Debug)]
enum Op {
    Create { who: Who, encrypted: Option<bool>, key: Choice },
    Restore { who: Who, stranger: bool, from: usize, encrypted: Option<bool>, key: Choice },
    Snapshot { stranger: bool, of: usize },
    Copy { who: Who, stranger: bool, of: usize, encrypted: Option<bool>, key: Choice },
    Share { of: usize, public: bool },
    Unshare { of: usize, public: bool },
    ByDefault { who: Who, on: bool },
    DefaultKey { who: Who, key: Choice },
    Rewrap { stranger: bool, of: usize, key: Choice },
    DeleteVolume { stranger: bool, of: usize },
    DeleteSnapshot { stranger: bool, of: usize },
}

impl Op {
    fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Restore { .. } => "restore",
            Self::Snapshot { .. } => "snapshot",
            Self::Copy { .. } => "copy",
            Self::Share { .. } => "share",
            Self::Unshare { .. } => "unshare",
            Self::ByDefault { .. } => "by default",
            Self::DefaultKey { .. } => "default key",
            Self::Rewrap { .. } => "rewrap",
            Self::DeleteVolume { .. } => "delete volume",
            Self::DeleteSnapshot { .. } => "delete snapshot",
        }
    }
}

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let who = || prop::sample::select(&Who::BOTH[..]);
    let encrypted = || prop::sample::select(&[None, Some(true), Some(false)][..]);
    // A key beside anything but Encrypted=true is refused, which the tables show: here it would only waste steps.
    let said = move || {
        (encrypted(), prop::option::of(0..4usize))
            .prop_map(|(encrypted, key)| if key.is_some() { (Some(true), key) } else { (encrypted, key) })
    };
    let key = || prop::option::of(0..4usize);
    let at = || 0..8usize;
    // Mostly those try who may.
    let stranger = || prop::bool::weighted(0.15);
    let op = prop_oneof![
        3 => (who(), said()).prop_map(|(who, (encrypted, key))| Op::Create { who, encrypted, key }),
        4 => (who(), stranger(), at(), said())
            .prop_map(|(who, stranger, from, (encrypted, key))| Op::Restore { who, stranger, from, encrypted, key }),
        5 => (stranger(), at()).prop_map(|(stranger, of)| Op::Snapshot { stranger, of }),
        4 => (who(), stranger(), at(), said())
            .prop_map(|(who, stranger, of, (encrypted, key))| Op::Copy { who, stranger, of, encrypted, key }),
        4 => (at(), any::<bool>()).prop_map(|(of, public)| Op::Share { of, public }),
        1 => (at(), any::<bool>()).prop_map(|(of, public)| Op::Unshare { of, public }),
        2 => (who(), any::<bool>()).prop_map(|(who, on)| Op::ByDefault { who, on }),
        2 => (who(), key()).prop_map(|(who, key)| Op::DefaultKey { who, key }),
        2 => (stranger(), at(), key()).prop_map(|(stranger, of, key)| Op::Rewrap { stranger, of, key }),
        1 => (stranger(), at()).prop_map(|(stranger, of)| Op::DeleteVolume { stranger, of }),
        1 => (stranger(), at()).prop_map(|(stranger, of)| Op::DeleteSnapshot { stranger, of }),
    ];
    prop::collection::vec(op, 30..50)
}

/// What must be known of an object to judge what comes of it.
#[derive(Clone, PartialEq, Debug)]
struct Object {
    owner: Who,
    key: Option<String>,
    /// Whether it is encrypted, or comes from something that is.
    secret: bool,
    /// Of a snapshot: whom it is shared with, beside its owner.
    shared: (bool, bool),
}

impl Object {
    fn is_visible_to(&self, who: Who) -> bool {
        self.owner == who || self.shared.0 || self.shared.1
    }
}

struct World {
    region: Region,
    keys: [String; 4],
    by_default: BTreeMap<&'static str, bool>,
    volumes: BTreeMap<VolumeId, Object>,
    snapshots: BTreeMap<SnapshotId, Object>,
    /// How many of each operation were carried out.
    done: BTreeMap<&'static str, usize>,
}

fn name(who: Who) -> &'static str {
    if who == Who::Home { "home" } else { "other" }
}

fn nth<K: Copy + Ord>(objects: &BTreeMap<K, Object>, index: usize) -> Option<K> {
    let count = objects.len();
    objects.keys().nth(index.checked_rem(count)?).copied()
}

/// An object, and its owner, or who is not.
fn actor<K: Copy + Ord>(objects: &BTreeMap<K, Object>, index: usize, stranger: bool) -> Option<(K, Who)> {
    let id = nth(objects, index)?;
    let owner = objects[&id].owner;
    Some((id, if stranger { owner.other() } else { owner }))
}

impl World {
    fn new() -> Self {
        let region = Region::new();
        let keys = [(Who::Home, true), (Who::Home, false), (Who::Other, true), (Who::Other, false)]
            .map(|(who, let_other)| region.key(who, let_other));
        let by_default = Who::BOTH.map(|who| (name(who), false)).into();
        Self {
            region,
            keys,
            by_default,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    fn said(&self, encrypted: Option<bool>, key: Choice) -> Said {
        Said { encrypted, key: key.map(|key| self.keys[key].clone()) }
    }

    /// A snapshot that `who` may use; a stranger takes any.
    fn source(&self, who: Who, stranger: bool, index: usize) -> Option<SnapshotId> {
        let may = |(_, object): &(&SnapshotId, &Object)| stranger || object.is_visible_to(who);
        let sources: Vec<SnapshotId> = self.snapshots.iter().filter(may).map(|(id, _)| *id).collect();
        sources.get(index.checked_rem(sources.len())?).copied()
    }

    /// What a new object must be, whatever it was made of.
    fn judge(&self, who: Who, from: Option<&Object>, said: &Said, key: Option<&String>) -> Object {
        let secret = from.is_some_and(|from| from.secret) || key.is_some();
        assert!(!secret || key.is_some(), "r49: {from:?} became unencrypted");
        assert!(!self.by_default[name(who)] || key.is_some(), "r39: by default, but not encrypted");
        assert!(said.encrypted != Some(true) || key.is_some(), "encryption was asked for");
        assert!(said.key.is_none() || said.key.as_ref() == key, "{said:?} became {key:?}");
        assert!(from.is_none_or(|from| from.is_visible_to(who)), "r51: {from:?} is not {who:?}'s to use");
        Object { owner: who, key: key.cloned(), secret, shared: (false, false) }
    }

    fn step(&mut self, op: &Op) {
        if self.perform(op).is_some() {
            *self.done.entry(op.name()).or_default() += 1;
        }
    }

    /// Does it, and notes what came of it. `None`: it was refused, or there was nothing to do it to.
    fn perform(&mut self, op: &Op) -> Option<()> {
        match *op {
            Op::Create { who, encrypted, key } => self.create(who, None, &self.said(encrypted, key)),
            Op::Restore { who, stranger, from, encrypted, key } => {
                let from = self.source(who, stranger, from)?;
                self.create(who, Some(from), &self.said(encrypted, key))
            }
            Op::Snapshot { stranger, of } => {
                let (volume, who) = actor(&self.volumes, of, stranger)?;
                let made = self.region.snapshot(who, volume).ok()?;
                let from = &self.volumes[&volume];
                assert_eq!(from.owner, who, "another account's volume");
                let key = made.kms_key_id.as_ref().map(ToString::to_string);
                assert_eq!(key, from.key, "r8: a snapshot is as its volume is, whatever the settings say");
                let secret = from.secret;
                self.snapshots
                    .insert(made.snapshot_id, Object { owner: who, key, secret, shared: (false, false) });
                Some(())
            }
            Op::Copy { who, stranger, of, encrypted, key } => {
                let source = self.source(who, stranger, of)?;
                let said = self.said(encrypted, key);
                let made = self.region.copy(who, source, &said).ok()?;
                let key = made.kms_key_id.as_ref().map(ToString::to_string);
                let object = self.judge(who, self.snapshots.get(&source), &said, key.as_ref());
                self.snapshots.insert(made.snapshot_id, object);
                Some(())
            }
            Op::Share { of, public } => self.share(of, public, true),
            Op::Unshare { of, public } => self.share(of, public, false),
            Op::ByDefault { who, on } => {
                self.region.directory(who).set_encryption_by_default(on).ok()?;
                self.by_default.insert(name(who), on);
                Some(())
            }
            Op::DefaultKey { who, key } => {
                match key {
                    Some(key) => self.region.pool(who).modify_default_kms_key(&self.keys[key]),
                    None => self.region.directory(who).reset_default_kms_key(),
                }
                .ok()?;
                Some(())
            }
            Op::Rewrap { stranger, of, key } => {
                let (volume, who) = actor(&self.volumes, of, stranger)?;
                let target = key.map(|key| self.keys[key].as_str());
                let made = self.region.pool(who).rewrap_volume(volume, target).ok()?;
                let object = self.volumes.get_mut(&volume)?;
                assert_eq!(object.owner, who);
                let after = made.kms_key_id.map(|key| key.to_string());
                assert_eq!(after.as_deref(), target.or(object.key.as_deref()));
                object.key = after;
                Some(())
            }
            Op::DeleteVolume { stranger, of } => {
                let (volume, who) = actor(&self.volumes, of, stranger)?;
                self.region.pool(who).delete_volume(volume).ok()?;
                assert_eq!(self.volumes.remove(&volume)?.owner, who);
                Some(())
            }
            Op::DeleteSnapshot { stranger, of } => {
                let (snapshot, who) = actor(&self.snapshots, of, stranger)?;
                self.region.pool(who).delete_snapshot(snapshot).ok()?;
                assert_eq!(self.snapshots.remove(&snapshot)?.owner, who, "only its owner deletes it");
                Some(())
            }
        }
    }

    fn create(&mut self, who: Who, from: Option<SnapshotId>, said: &Said) -> Option<()> {
        let made = self.region.volume(who, from, said).ok()?;
        let key = made.kms_key_id.as_ref().map(ToString::to_string);
        let from = from.and_then(|from| self.snapshots.get(&from));
        let object = self.judge(who, from, said, key.as_ref());
        self.volumes.insert(made.volume_id, object);
        Some(())
    }

    fn share(&mut self, of: usize, public: bool, on: bool) -> Option<()> {
        let snapshot = nth(&self.snapshots, of)?;
        let object = self.snapshots.get_mut(&snapshot)?;
        let owner = object.owner;
        let with =
            if public { ShareWith::Everybody } else { ShareWith::Accounts(vec![owner.other().account()]) };
        let changed = |who: Who| {
            let pool = self.region.pool(who);
            if on { pool.share_snapshot(snapshot, &with) } else { pool.unshare_snapshot(snapshot, &with) }
        };
        assert!(changed(owner.other()).is_err(), "only its owner shares it");
        changed(owner).ok()?;
        assert!(!(on && public && object.key.is_some()), "r50: an encrypted snapshot became public");
        if public {
            object.shared.1 = on
        } else {
            object.shared.0 = on
        }
        Some(())
    }

    /// What exists is what the model says, and each account sees of it what it may.
    fn check(&self) -> Result<(), ControlError> {
        for who in Who::BOTH {
            let pool = self.region.pool(who);
            let mut seen = BTreeMap::new();
            for volume in pool.list_volumes()? {
                let ListedVolume::Whole(volume) = volume else { panic!("{volume:?}") };
                seen.insert(volume.volume_id, volume.kms_key_id.map(|key| key.to_string()));
            }
            let known = self.volumes.iter().filter(|(_, object)| object.owner == who);
            let known = known.map(|(id, object)| (*id, object.key.clone())).collect();
            assert_eq!(seen, known, "r37, r42: the volumes of {who:?}");
            let mut seen = BTreeMap::new();
            for snapshot in pool.list_snapshots()?.into_iter().chain(pool.list_shared_snapshots()?) {
                assert_eq!(snapshot.encrypted, snapshot.kms_key_id.is_some());
                // Deleted, but a volume that is made from it still holds it.
                if snapshot.state == State::Deleting {
                    continue;
                }
                seen.insert(snapshot.snapshot_id, snapshot.kms_key_id.map(|key| key.to_string()));
            }
            let known = self.snapshots.iter().filter(|(_, object)| object.is_visible_to(who));
            let known = known.map(|(id, object)| (*id, object.key.clone())).collect();
            assert_eq!(seen, known, "r37, r42: the snapshots that {who:?} sees");
        }
        Ok(())
    }
}

#[test]
fn r49_r42_r37_whatever_is_done_nothing_loses_its_encryption_and_nothing_changes_its_key() {
    let done: RefCell<BTreeMap<&'static str, usize>> = RefCell::default();
    for seed in SEEDS {
        println!("seed {seed}");
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner =
            TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
        let outcome = runner.run(&operations(), |operations| {
            let mut world = World::new();
            for operation in &operations {
                world.step(operation);
                world.check().expect("what exists can be listed");
            }
            for (name, count) in world.done {
                *done.borrow_mut().entry(name).or_default() += count;
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    println!("{done:?}");
    let done = done.into_inner();
    for name in ["create", "restore", "snapshot", "copy", "share", "rewrap", "by default", "default key"] {
        assert!(done.get(name).is_some_and(|&count| count >= 3), "too few of {name}: {done:?}");
    }
}
