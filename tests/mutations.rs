//! Every command that changes something, killed at every durable step: `strace` lets the process reach its n-th rename, fsync,
//! link, unlink or new directory and kills it there, for n = 1, 2, … until it gets through. Then the next commands find
//! the old state or the new one, do what was interrupted, and nothing is left over or lost.
//!
//! The binary is the one that is shipped: no fault point is compiled into it.
#![allow(clippy::print_stdout, reason = "how many steps there were, for who reads a failure")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{Finished, Pool, exit, foreign, run};

/// What makes a step durable, or takes something away.
const STEPS: &str =
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat";
/// More steps than any command has.
const STEPS_MAX: u32 = 200;
const OTHER: &str = "222222222222";

/// A pool with a volume and a snapshot of it, both encrypted under `key`, and another key.
struct Template {
    pool: Pool,
    key: String,
    other_key: String,
    volume: String,
    snapshot: String,
}

fn text(document: &Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

fn copy_pool(from: &Path, to: &Path) {
    run(foreign("cp").arg("-a").arg(from).arg(to)).ok();
}

impl Template {
    fn new() -> Self {
        let pool = Pool::new();
        let key = text(&pool.json(&["key", "create"]), "Arn");
        let other_key = text(&pool.json(&["key", "create"]), "Arn");
        let volume = pool.create(&["--size", "4MiB", "--encrypted", "--kms-key-id", &key]);
        let attachment = pool.attach(&volume, &[]);
        attachment.client().write(0, &support::noise(1, 1 << 20)).expect("a write");
        attachment.terminate();
        let snapshot = text(&pool.json(&["snapshot", "create", &volume]), "SnapshotId");
        Self { pool, key, other_key, volume, snapshot }
    }

    /// A pool like it, which a test may ruin.
    fn pool(&self) -> Pool {
        let pool = Pool::new();
        copy_pool(&self.pool.path(), &pool.path());
        pool
    }
}

/// Runs a command up to its n-th step and no further. `None`: it got through.
fn killed_at(pool: &Pool, step: u32, args: &[&str]) -> Option<Finished> {
    let plain = pool.command(args);
    let mut command = foreign("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={STEPS}"));
    command.arg("-e").arg(format!("inject={STEPS}:signal=SIGKILL:when={step}"));
    command.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let finished = run(&mut command);
    (!finished.status.success()).then_some(finished)
}

/// What can be told of a pool: it must always be possible, and nothing in it may be damaged.
fn state(pool: &Pool) -> Value {
    let volumes = pool.json(&["volume", "list"])["Volumes"].clone();
    let snapshots = pool.json(&["snapshot", "list"])["Snapshots"].clone();
    for volume in volumes.as_array().expect("a list") {
        assert_eq!(volume["State"], "available", "{volume}");
    }
    json!({
        "Volumes": volumes,
        "Snapshots": snapshots,
        "ByDefault": pool.json(&["settings", "encryption-by-default", "get"])["EbsEncryptionByDefault"],
        "DefaultKey": pool.json(&["settings", "default-kms-key", "get"])["KmsKeyId"],
    })
}

/// Kills `args` at each of its steps. `look` is given the pool after each kill and says whether it is in the old state or
/// the new one, and fails if it is in neither; `again` says what to do then, so that it is in the new one.
fn at_every_step(
    template: &Template,
    args: &[&str],
    look: impl Fn(&Pool, &Value) -> bool,
    again: impl Fn(&Pool),
) {
    let (mut old, mut new) = (0, 0);
    for step in 1..=STEPS_MAX {
        let pool = template.pool();
        let Some(_killed) = killed_at(&pool, step, args) else {
            assert!(look(&pool, &state(&pool)), "{args:?} got through, and nothing has changed");
            println!("{args:?}: {} steps, {old} times the old state, {new} times the new one", step - 1);
            assert!(old > 0, "{args:?} has no durable step");
            return;
        };
        if look(&pool, &state(&pool)) {
            new += 1;
        } else {
            old += 1;
            again(&pool);
            assert!(look(&pool, &state(&pool)), "{args:?} at {step}: it cannot be done again");
        }
        whole(template, &pool, &format!("{args:?} killed at step {step}"));
    }
    panic!("{args:?} has more than {STEPS_MAX} steps");
}

/// Nothing that was there is lost, and after the next command that cleans up nothing is left over.
fn whole(template: &Template, pool: &Pool, what: &str) {
    pool.create(&["--size", "1MiB"]);
    for name in names(&pool.path().join("volumes")) {
        let known = name.starts_with("vol-") || name == ".lock";
        assert!(known, "{what}: {name} is left");
    }
    let verified = pool.run(&["snapshot", "verify", "--all", "--deep"]);
    verified.ok();
    if pool.run(&["snapshot", "describe", &template.snapshot]).status.success() {
        // What is saved of the volume can be read back under its key.
        pool.create(&["--snapshot-id", &template.snapshot]);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

fn again<'a>(args: &'a [&'a str]) -> impl Fn(&Pool) + 'a {
    move |pool| {
        pool.run(args).ok();
    }
}

fn count(state: &Value, what: &str) -> usize {
    state[what].as_array().expect("a list").len()
}

#[test]
fn settings_are_the_old_ones_or_the_new_ones() {
    let template = Template::new();
    let args = ["settings", "encryption-by-default", "enable"];
    at_every_step(&template, &args, |_, state| state["ByDefault"] == true, again(&args));
    let args = ["settings", "default-kms-key", "modify", &template.other_key];
    let look = |_: &Pool, state: &Value| {
        let key = &state["DefaultKey"];
        assert!(*key == "alias/aws/ebs" || *key == template.other_key.as_str(), "{key}");
        *key == template.other_key.as_str()
    };
    at_every_step(&template, &args, look, again(&args));
}

#[test]
fn a_volume_is_made_whole_or_not_at_all() {
    let template = Template::new();
    let look = |_: &Pool, state: &Value| {
        assert!((1..=2).contains(&count(state, "Volumes")), "{state}");
        count(state, "Volumes") == 2
    };
    let args = ["volume", "create", "--size", "2MiB", "--encrypted"];
    at_every_step(&template, &args, look, again(&args));
    let args = [
        "volume",
        "create",
        "--snapshot-id",
        &template.snapshot,
        "--encrypted",
        "--kms-key-id",
        &template.other_key,
    ];
    at_every_step(&template, &args, look, again(&args));
}

#[test]
fn a_volume_is_deleted_or_whole() {
    let template = Template::new();
    let args = ["volume", "delete", &template.volume];
    at_every_step(&template, &args, |_, state| count(state, "Volumes") == 0, again(&args));
}

#[test]
fn a_rewrapped_volume_has_its_old_key_or_its_new_one() {
    let template = Template::new();
    let args = ["volume", "rewrap", &template.volume, "--kms-key-id", &template.other_key];
    let look = |_: &Pool, state: &Value| {
        let key = &state["Volumes"][0]["KmsKeyId"];
        assert!(*key == template.key.as_str() || *key == template.other_key.as_str(), "{key}");
        *key == template.other_key.as_str()
    };
    at_every_step(&template, &args, look, again(&args));
}

/// Of the snapshots but the template's own: whether one is completed. One that is pending is given up.
fn completed(template: &Template, pool: &Pool, state: &Value) -> bool {
    let snapshots = state["Snapshots"].as_array().expect("a list");
    let others = snapshots.iter().filter(|snapshot| snapshot["SnapshotId"] != template.snapshot.as_str());
    let mut done = false;
    for snapshot in others {
        assert_eq!(snapshot["Encrypted"], true, "{snapshot}");
        match text(snapshot, "State").as_str() {
            "completed" => done = true,
            "pending" => drop(pool.run(&["snapshot", "delete", &text(snapshot, "SnapshotId")]).ok()),
            other => panic!("{other}: {snapshot}"),
        }
    }
    done
}

#[test]
fn a_snapshot_is_complete_or_can_be_given_up() {
    let template = Template::new();
    let args = ["snapshot", "create", &template.volume];
    at_every_step(&template, &args, |pool, state| completed(&template, pool, state), again(&args));
}

#[test]
fn a_copy_is_complete_or_can_be_given_up() {
    let template = Template::new();
    let args = ["snapshot", "copy", &template.snapshot, "--encrypted", "--kms-key-id", &template.other_key];
    at_every_step(&template, &args, |pool, state| completed(&template, pool, state), again(&args));
}

#[test]
fn a_snapshot_is_deleted_or_can_still_be_deleted() {
    let template = Template::new();
    let args = ["snapshot", "delete", &template.snapshot];
    let look = |_: &Pool, state: &Value| count(state, "Snapshots") == 0;
    let again = |pool: &Pool| {
        let finished = pool.run(&args);
        let gone = finished.status.code() == Some(exit::NOT_FOUND);
        assert!(gone || finished.status.success(), "{finished}");
    };
    at_every_step(&template, &args, look, again);
}

#[test]
fn a_snapshot_is_shared_or_not() {
    let template = Template::new();
    let args = ["snapshot", "share", &template.snapshot, "--account-id", OTHER];
    let shared = |_: &Pool, state: &Value| {
        let with = &state["Snapshots"][0]["CreateVolumePermissions"];
        assert!(with.is_null() || *with == json!([{ "UserId": OTHER }]), "{with}");
        !with.is_null()
    };
    at_every_step(&template, &args, shared, again(&args));
    template.pool.run(&args).ok();
    let args = ["snapshot", "unshare", &template.snapshot, "--account-id", OTHER];
    at_every_step(&template, &args, |pool, state| !shared(pool, state), again(&args));
}
