//! The NBD conformance checklist, by its numbers: each has a test whose name begins with it.

use std::collections::BTreeSet;

/// The numbers that end the checklist.
const POINTS: u32 = 106;
/// Decisions, with nothing to see in a server: that there are no pre-shared keys (51), and that extended headers are
/// spoken (61), which 57 to 60 show.
const DECISIONS: [u32; 2] = [51, 61];
/// Failures of other servers, each with a test that carries its name.
const FAILURES: &[&str] = &[
    "cve_2005_3534",
    "cve_2011_1925",
    "cve_2013_6410",
    "cve_2013_7441",
    "cve_2015_0847",
    "cve_2017_7539",
    "cve_2017_9524",
    "cve_2017_15118",
    "cve_2017_15119",
    "cve_2019_14850",
    "cve_2019_14851",
    "cve_2020_10761",
    "cve_2021_3716",
    "cve_2022_26495",
    "cve_2022_26496",
    "cve_2024_7409",
    "cve_2025_47711",
    "cve_2025_47712",
];

/// The points, and the failures of others, that no test in `sources` is named after.
pub(crate) fn missing(sources: impl Iterator<Item = String>) -> Vec<String> {
    let (mut points, mut names) = (BTreeSet::new(), String::new());
    for source in sources {
        for name in tests(&source) {
            points.extend(points_of(name));
            names.extend([name, " "]);
        }
    }
    let is_missing = |point: &u32| !points.contains(point) && !DECISIONS.contains(point);
    let mut missing: Vec<String> =
        (1..=POINTS).filter(is_missing).map(|point| format!("a{point:02}")).collect();
    missing
        .extend(FAILURES.iter().filter(|failure| !names.contains(**failure)).map(|name| (*name).to_owned()));
    missing
}

/// The names of the tests in a source file: of functions right behind an attribute that ends in `test]`.
fn tests(source: &str) -> impl Iterator<Item = &str> {
    let lines = source.lines().zip(source.lines().skip(1));
    lines.filter_map(|(attribute, line)| {
        let attribute = attribute.trim();
        let is_test = attribute.starts_with("#[") && attribute.contains("test");
        let function = line.trim().trim_start_matches("async ").strip_prefix("fn ")?;
        function.split('(').next().filter(|_| is_test)
    })
}

/// The numbers at the beginning of a test's name: `a69_…`, `a02_a03_…`.
fn points_of(name: &str) -> impl Iterator<Item = u32> {
    let digits = |part: &str| part.strip_prefix('a').filter(|digits| digits.len() >= 2).map(str::to_owned);
    name.split('_').map_while(move |part| digits(part)?.parse().ok())
}

#[test]
fn names_tell_their_points() {
    assert_eq!(points_of("a02_a03_the_greeting").collect::<Vec<_>>(), [2, 3]);
    assert_eq!(points_of("a100_nothing").collect::<Vec<_>>(), [100]);
    assert_eq!(points_of("any_a05_thing").count(), 0);
    let source = "#[test]\nfn a01_one() {}\nfn a02_helper() {}\n    #[tokio::test(start_paused)]\n    async fn a03_x() {}";
    assert_eq!(tests(source).collect::<Vec<_>>(), ["a01_one", "a03_x"]);
}
