//! Messages: the golden file of usage errors, and a check that every sentence of the reports is in some golden file
//! (`src/report/tests.rs` tests the reports themselves).

use std::fs;
use std::path::Path;

use super::looks::golden;
use crate::support::program::{Answer, vulcanized};

/// Every usage error with its command line.
#[test]
fn every_usage_error() {
    let mut text = String::new();
    for arguments in [
        "",
        "--pods -",
        "--owner A --pods -",
        "--owner prod --pods -",
        "--owner prod --nonsense",
        "--owner prod --polcy sync",
        "--owner prod --pods - --etcd http://a --store-file b",
        "--owner prod --pods - --etcd http://a:99999",
        "--owner prod --pods - --etcd ftp://a",
        "--owner prod --pods - --etcd http://root:s3cret@a",
        "--owner prod --pods - --etcd http://a/v3",
        "--owner prod --pods - --etcd http://a --etcd-api 4",
        "--owner prod --pods - --etcd http://a --cert b",
        "--owner prod --pods - --etcd http://a --user root",
        "--owner prod --pods - --etcd http://a --password-file b",
        "--owner prod --pods - --etcd http://a --layout nginx",
        "--owner prod --pods - --etcd http://a --layout traefik --etcd-api 2",
        "--owner prod --pods - --etcd http://a --layout traefik --prefix /traefik",
        "--owner 12 --pods - --etcd http://a --layout traefik",
        "--owner prod --pods - --etcd http://a --prefix /",
        "--owner prod --pods - --etcd http://a --prefix /a/",
        "--owner prod --pods - --etcd http://a --prefix a'b",
        "--owner prod --pods - --etcd http://a --pods -",
        "--owner prod --pods - --etcd http://a -n shop",
        "--owner prod --etcd http://a -n Shop",
        "--owner prod --etcd http://a -n shop -A",
        "--owner prod --etcd http://a -A",
        "--owner prod --etcd http://a -n shop,blog --backend {name}",
        "--owner prod --pods - --etcd http://a --backend {nmae}",
        "--owner prod --pods - --etcd http://a --backend {name",
        "--owner prod --pods - --etcd http://a --port 0",
        "--owner prod --pods - --etcd http://a --scheme ftp",
        "--owner prod --pods - --etcd http://a --ip-family ipv5",
        "--owner prod --pods - --etcd http://a --cluster a@b",
        "--owner prod --pods - --etcd http://a --cluster A",
        "--owner prod --pods - --etcd http://a --adopt all",
        "--owner prod --pods - --etcd http://a --adopt owner:prod",
        "--owner prod --pods - --etcd http://a --policy delete",
        "--owner prod --pods - --etcd http://a --allow-deletes many",
        "--owner prod --pods - --etcd http://a --max-deletes 101%",
        "--owner prod --pods - --etcd http://a --expect xyz",
        "--owner prod --pods - --etcd http://a --exit-code",
        "--owner prod --pods - --etcd http://a --alarm-exit-code 300",
        "--owner prod --pods - --etcd http://a --metrics-push nowhere",
        "--owner prod --pods - --etcd http://a --metrics-push http://u:p@h",
        "--owner prod --pods - --etcd http://a --timeout soon",
        "--owner prod --pods - --etcd http://a --timeout 0s",
        "--owner prod --pods - --etcd http://a -q -v",
        "--owner prod --pods - --etcd http://a -o yaml",
        "explain --owner prod",
        "explain web-1 --pods -",
        "statsu",
    ] {
        let answer = vulcanized(arguments).exits(2);
        assert_eq!(answer.out, "", "{arguments}");
        assert!(!answer.err.contains("s3cret"), "{answer}");
        text.extend(["$ vulcanized ", arguments, "\n", &answer.err, "\n"]);
    }
    let answer = Answer {
        code: 2,
        out: text,
        err: String::new(),
    };
    golden("usage.txt", &answer);
}

/// Every sentence of the reports is in a golden file, so that it was reviewed in context.
#[test]
fn every_sentence_of_the_reports_is_in_a_golden_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut goldens = String::new();
    let folders = fs::read_dir(root.join("fixtures/scenarios")).expect("a folder");
    let folders = folders.map(|entry| entry.expect("an entry").path());
    for folder in folders.chain([root.join("fixtures/looks")]) {
        for file in fs::read_dir(folder).expect("a folder") {
            let text = fs::read_to_string(file.expect("a file").path()).expect("UTF-8");
            goldens.extend(text.split_whitespace().flat_map(|word| [word, " "]));
        }
    }
    let mut missing = Vec::new();
    let mut sentences = 0;
    for file in [
        "reasons",
        "notes/mod",
        "notes/losses",
        "notes/findings",
        "diff",
        "explain",
        "status",
    ] {
        let source =
            fs::read_to_string(root.join(format!("src/report/{file}.rs"))).expect("a file");
        let code = source
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n").replace("\\\"", "\u{1}");
        // Every second part is a string literal.
        for text in code.split('"').skip(1).step_by(2) {
            let text = text
                .replace("{{", "\u{2}")
                .replace("}}", "\u{3}")
                .replace("\\\n", "");
            let parts = text
                .split('{')
                .map(|part| part.split_once('}').map_or(part, |(_, rest)| rest));
            let longest = parts.max_by_key(|part| part.len()).unwrap_or_default();
            let words = longest.split_whitespace().collect::<Vec<_>>();
            if words.len() < 3 {
                continue;
            }
            let sentence = words
                .join(" ")
                .replace('\u{1}', "\"")
                .replace('\u{2}', "{")
                .replace('\u{3}', "}");
            sentences += 1;
            if !goldens.contains(&sentence) {
                missing.push(format!("{file}: {sentence}"));
            }
        }
    }
    assert!(sentences > 100, "{sentences}");
    assert!(
        missing.is_empty(),
        "in no golden file:\n{}",
        missing.join("\n")
    );
}
