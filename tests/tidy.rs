//! The rules of house-style and design that a program can hold: where `unsafe` may be, which crate may know which,
//! what libraries never do, what never gets into the repository. It reads the tracked files; it runs nothing of ours.

#[path = "tidy/checklist.rs"]
mod checklist;
#[path = "tidy/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};
use source::code_of;

/// The only shipped files with `unsafe` (design §2): a file, or a directory if it ends in a slash.
const UNSAFE_FILES: &[&str] =
    &["crates/keymem/src/page.rs", "crates/xts/src/arch/", "crates/block/src/ring.rs"];

/// What each crate may depend on of ours (design §2). A crate that is not named may depend on none.
const EDGES: &[(&str, &[&str])] = &[
    ("sealblk-xts", &["sealblk-keymem"]),
    ("sealblk-nbd", &["sealblk-block"]),
    ("sealblk-kms", &["sealblk-keymem", "sealblk-record"]),
    ("sealblk-kms-aws", &["sealblk-keymem", "sealblk-kms"]),
    ("sealblk-snapshot", &["sealblk-record"]),
    ("sealblk-upstream", &["sealblk-block", "sealblk-nbd"]),
    ("sealblk-volume", &["sealblk-block", "sealblk-keymem", "sealblk-record", "sealblk-xts"]),
    (
        "sealblk-control",
        &[
            "sealblk-block",
            "sealblk-keymem",
            "sealblk-kms",
            "sealblk-nbd",
            "sealblk-record",
            "sealblk-snapshot",
            "sealblk-upstream",
            "sealblk-volume",
        ],
    ),
    ("sealblk-testkit", &["sealblk-block", "sealblk-keymem", "sealblk-kms"]),
    (
        "sealblk",
        &[
            "sealblk-block",
            "sealblk-control",
            "sealblk-keymem",
            "sealblk-kms",
            "sealblk-nbd",
            "sealblk-volume",
            // `sealblk bench` measures the cipher's kernels.
            "sealblk-xts",
        ],
    ),
];

/// Who may never reach whom, over any number of edges.
const NEVER: &[(&str, &[&str])] = &[
    ("sealblk-nbd", &["sealblk-keymem", "sealblk-xts", "sealblk-kms", "sealblk-volume"]),
    ("sealblk-volume", &["sealblk-kms", "sealblk-nbd", "sealblk-control"]),
    ("sealblk-block", &["sealblk-keymem", "sealblk-xts", "sealblk-kms", "sealblk-volume", "sealblk-nbd"]),
    ("sealblk-kms", &["sealblk-block", "sealblk-nbd", "sealblk-volume", "sealblk-control"]),
    ("sealblk-snapshot", &["sealblk-keymem", "sealblk-xts", "sealblk-kms", "sealblk-nbd", "sealblk-control"]),
    (
        "sealblk-upstream",
        &["sealblk-keymem", "sealblk-xts", "sealblk-kms", "sealblk-volume", "sealblk-control"],
    ),
    ("sealblk-kms-aws", &["sealblk-block", "sealblk-nbd", "sealblk-volume", "sealblk-control"]),
];

/// Crates that encrypt, hash or hold secrets: `block` and `nbd` know nothing of those.
const CRYPTOGRAPHY: &[&str] = &["aes", "aes-gcm", "hkdf", "hmac", "sha2", "subtle", "xts-mode", "zeroize"];

/// Code lines that a shipped file may have; past `LONG` it is named, past `TOO_LONG` the test fails.
const LONG: usize = 400;
const TOO_LONG: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The repository's files whose path ends in `suffix`, from the root: tracked, or new and not ignored.
fn files(suffix: &str) -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is there, and this is a clone");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).expect("paths are text");
    let files: Vec<String> =
        listed.lines().filter(|path| path.ends_with(suffix)).map(str::to_owned).collect();
    // A file that was removed but not yet committed is still listed.
    files.into_iter().filter(|path| root().join(path).is_file()).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Source files that are part of the product: not tests, not benches.
fn shipped() -> Vec<String> {
    let mut paths = files(".rs");
    paths.retain(|path| {
        let product =
            path.starts_with("crates/") && (path.contains("/src/") || path.starts_with("crates/cli/"));
        product
            && !path.starts_with("crates/testkit/")
            && !path.ends_with("/tests.rs")
            && !path.contains("/tests/")
    });
    assert!(paths.len() > 20, "the product's files are found: {paths:?}");
    paths
}

/// The code of a shipped file, without its unit tests.
fn product_code(path: &str) -> String {
    let code = code_of(&read(path));
    match code.find("#[cfg(test)]\nmod tests {") {
        Some(tests) => code[..tests].to_owned(),
        None => code,
    }
}

/// Line numbers, from 1, on which `word` stands as a word of its own.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let of_word = |char: char| char.is_alphanumeric() || char == '_';
    let has = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            !line[..at].chars().next_back().is_some_and(of_word)
                && !line[at + word.len()..].chars().next().is_some_and(of_word)
        })
    };
    code.lines().enumerate().filter(|(_, line)| has(line)).map(|(number, _)| number + 1).collect()
}

fn may_be_unsafe(path: &str) -> bool {
    UNSAFE_FILES
        .iter()
        .any(|allowed| path == *allowed || (allowed.ends_with('/') && path.starts_with(allowed)))
}

#[test]
fn unsafe_is_only_in_the_files_that_the_design_names() {
    let mut found = Vec::new();
    for path in shipped().iter().filter(|path| !may_be_unsafe(path)) {
        found.extend(lines_with(&code_of(&read(path)), "unsafe").iter().map(|line| format!("{path}:{line}")));
    }
    assert!(found.is_empty(), "unsafe outside {UNSAFE_FILES:?}: {found:#?}");
}

#[test]
fn the_compiler_holds_the_unsafe_rule_in_every_crate() {
    let mut roots = files("/src/lib.rs");
    roots.retain(|path| path.starts_with("crates/"));
    roots.push("crates/cli/main.rs".to_owned());
    for path in roots {
        let folder = path.split('/').nth(1).expect("crates/FOLDER/…");
        let level = if UNSAFE_FILES.iter().any(|file| file.contains(&format!("/{folder}/"))) {
            "deny"
        } else {
            "forbid"
        };
        let wanted = format!("#![{level}(unsafe_code)]");
        assert!(read(&path).contains(&wanted), "{path} says {wanted}");
    }
}

/// Lines, from 1, of items that say why one proof stands for all of their blocks.
fn excused_lines(text: &str) -> BTreeSet<usize> {
    let mut excused = BTreeSet::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        inside |= line.starts_with("#[allow(clippy::undocumented_unsafe_blocks, reason = ");
        if inside {
            excused.insert(number + 1);
        }
        inside &= line != "}";
    }
    excused
}

#[test]
fn every_unsafe_has_its_proof_just_above() {
    let mut bare = Vec::new();
    for path in files(".rs").iter().filter(|path| path.contains("crates/") || path.starts_with("tests/")) {
        let text = read(path);
        let lines: Vec<&str> = text.lines().collect();
        let code = code_of(&text);
        let excused = excused_lines(&text);
        for line in lines_with(&code, "unsafe").into_iter().filter(|line| !excused.contains(line)) {
            // Of a declaration (`unsafe fn`) the docs have the contract; clippy asks for that.
            let at = code.lines().nth(line - 1).expect("as many lines");
            let behind = at.split("unsafe").skip(1).map(str::trim_start);
            let proves = behind.into_iter().any(|rest| rest.starts_with('{') || rest.starts_with("impl"));
            if proves && !lines[line.saturating_sub(8)..line].iter().any(|line| line.contains("SAFETY:")) {
                bare.push(format!("{path}:{line}"));
            }
        }
    }
    assert!(bare.is_empty(), "without a SAFETY comment: {bare:#?}");
}

/// Each package of the workspace with the names of what it depends on outside tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec();
    let packages = metadata.expect("cargo metadata answers").packages;
    let mut graph = BTreeMap::new();
    for package in packages {
        let shipped = package.dependencies.iter().filter(|one| one.kind != DependencyKind::Development);
        graph.insert(package.name.to_string(), shipped.map(|one| one.name.clone()).collect());
    }
    graph
}

#[test]
fn crates_depend_on_each_other_as_the_design_says() {
    let graph = dependencies();
    for (name, on) in &graph {
        let allowed = EDGES.iter().find(|(from, _)| from == name).map_or(&[][..], |(_, to)| to);
        let ours = on.iter().filter(|one| graph.contains_key(*one));
        let more: Vec<&String> = ours.filter(|one| !allowed.contains(&one.as_str())).collect();
        assert!(more.is_empty(), "{name} depends on {more:?}, which design §2 does not say");
    }
}

#[test]
fn forbidden_crates_are_out_of_reach() {
    let graph = dependencies();
    for (from, never) in NEVER {
        let mut reached = BTreeSet::new();
        let mut open = vec![*from];
        while let Some(name) = open.pop() {
            let on = graph.get(name).unwrap_or_else(|| panic!("{name} is a package of the workspace"));
            open.extend(
                on.iter()
                    .filter(|one| graph.contains_key(*one) && reached.insert((*one).clone()))
                    .map(String::as_str),
            );
        }
        for name in *never {
            assert!(!reached.contains(*name), "{from} reaches {name}");
        }
    }
}

#[test]
fn storage_and_protocol_know_no_cryptography() {
    let graph = dependencies();
    for name in ["sealblk-block", "sealblk-nbd"] {
        let known: Vec<&&str> = CRYPTOGRAPHY.iter().filter(|one| graph[name].contains(**one)).collect();
        assert!(known.is_empty(), "{name} depends on {known:?}");
    }
    assert!(
        CRYPTOGRAPHY.iter().any(|one| graph["sealblk-volume"].contains(*one)),
        "the names are the right ones"
    );
}

#[test]
fn libraries_do_not_print_log_exit_or_read_the_environment() {
    let never = [
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "dbg!",
        "env::var",
        "env::var_os",
        "env::vars",
        "env::args",
        "process::exit",
        "process::abort",
        "log::",
        "tracing::",
    ];
    let mut found = Vec::new();
    for path in shipped().iter().filter(|path| !path.starts_with("crates/cli/")) {
        let code = product_code(path);
        for (number, line) in code.lines().enumerate() {
            let calls = never.iter().filter(|call| {
                line.match_indices(*call)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            found.extend(calls.map(|call| format!("{path}:{}: {call}", number + 1)));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
#[expect(clippy::print_stderr, reason = "a file that is getting long is a note, not a failure")]
fn no_shipped_file_is_too_long() {
    let mut too_long = Vec::new();
    for path in shipped() {
        let lines = product_code(&path).lines().filter(|line| !line.trim().is_empty()).count();
        if lines > LONG {
            eprintln!("{path} has {lines} code lines: would a newcomer split it?");
        }
        if lines > TOO_LONG {
            too_long.push(format!("{path}: {lines} code lines"));
        }
    }
    assert!(too_long.is_empty(), "{too_long:#?}");
}

#[test]
fn every_file_says_what_it_is() {
    let bare: Vec<String> = files(".rs").into_iter().filter(|path| !read(path).starts_with("//!")).collect();
    assert!(bare.is_empty(), "no //! header: {bare:#?}");
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let mut manifests = files("/Cargo.toml");
    manifests.retain(|path| path.starts_with("crates/"));
    manifests.push("Cargo.toml".to_owned());
    for path in manifests {
        assert!(read(&path).contains("[lints]\nworkspace = true"), "{path} has no [lints] workspace = true");
    }
}

#[test]
fn every_point_of_the_nbd_checklist_and_every_failure_of_others_has_a_test_of_its_name() {
    let missing = checklist::missing(files(".rs").iter().map(|path| read(path)));
    assert!(missing.is_empty(), "{missing:?}");
}

/// Ignored tests are other tests' helper processes, and say whose; nothing else is.
#[test]
fn no_test_is_ignored() {
    let mut found = Vec::new();
    for path in files(".rs") {
        let text = read(&path);
        let code = code_of(&text);
        let ignored = code.lines().zip(text.lines()).filter(|(code, _)| code.contains("#[ignore"));
        found
            .extend(ignored.filter(|(_, line)| !line.contains("#[ignore = \"run by ")).map(|_| path.clone()));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The machine that built it and the registries it built from are nobody's business, and would be wrong elsewhere.
#[test]
fn no_path_of_a_machine_and_no_registry_host_is_in_the_repository() {
    let never = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("debian", ".org"),
        concat!("npmjs", ".org"),
        concat!("static.rust", "-lang.org"),
    ];
    let mut found = Vec::new();
    for path in files("").into_iter().filter(|path| !path.ends_with("Cargo.lock")) {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            found.extend(
                never
                    .iter()
                    .filter(|one| line.contains(**one))
                    .map(|one| format!("{path}:{}: {one}", number + 1)),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn scripts_stop_at_the_first_error() {
    let scripts = files("")
        .into_iter()
        .filter(|path| path.starts_with("scripts/") || path.starts_with(".ci/") || path == "tests/vm/build");
    let mut seen = 0;
    for path in scripts.filter(|path| read(path).starts_with("#!/usr/bin/env bash\n")) {
        assert!(read(&path).contains("\nset -euo pipefail\n"), "{path}");
        let checked = Command::new("bash").arg("-n").arg(root().join(&path)).status().expect("bash runs");
        assert!(checked.success(), "{path} does not parse");
        seen += 1;
    }
    assert!(seen >= 4, "the scripts are found");
    let executable: Vec<PathBuf> =
        ["scripts/test", "scripts/check", ".ci/run"].iter().map(|path| root().join(path)).collect();
    for path in executable {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{} is executable", path.display());
    }
}
