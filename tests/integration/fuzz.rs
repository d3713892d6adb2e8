//! The fuzz targets of `fuzz/`, run on mutated seeds within bounds. The seeds come from the fixtures.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::api::{Api, Reply};

#[path = "../fuzz/src/lib.rs"]
mod targets;

type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

const TARGETS: [Target; 7] = [
    ("pods_json", targets::pods_json, pods_json),
    ("pods_protobuf", targets::pods_protobuf, pods_protobuf),
    ("kubeconfig", targets::kubeconfig, kubeconfig),
    ("store", targets::store, store),
    ("mapping_of_pods", targets::mapping_of_pods, mapping_of_pods),
    ("store_file", targets::store_file, store_file),
    ("hostile_text", targets::hostile_text, hostile_text),
];

fn fixtures(folder: &str, ends: &str) -> Vec<Vec<u8>> {
    fn walk(folder: &Path, ends: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of fixtures") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, ends, found);
            } else if path.to_string_lossy().ends_with(ends) {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut found = Vec::new();
    walk(&root.join(folder), ends, &mut found);
    found.sort();
    let read = |path: &PathBuf| fs::read(path).expect("a fixture");
    let found = found.iter().map(read).collect::<Vec<_>>();
    assert!(!found.is_empty(), "{folder}/*{ends}");
    found
}

fn pods_json() -> Vec<Vec<u8>> {
    let page = |pod: Vec<u8>| {
        let mut pod = serde_json::from_slice::<serde_json::Value>(&pod).expect("a pod");
        pod["metadata"]["managedFields"] = serde_json::Value::Null;
        let list = serde_json::json!({
            "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [pod],
        });
        list.to_string().into_bytes()
    };
    let mut seeds = fixtures("kube/states", ".json");
    seeds = seeds.into_iter().map(page).collect();
    seeds.extend(fixtures("scenarios", "pods.json"));
    seeds
}

/// Pages of one pod each, cut out of a page of many.
fn pods_protobuf() -> Vec<Vec<u8>> {
    fn varint(bytes: &[u8], at: &mut usize) -> usize {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    /// The fields of a message, all of them with a length.
    fn fields(bytes: &[u8]) -> Vec<(u8, &[u8])> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let tag = bytes[at];
            at += 1;
            let length = varint(bytes, &mut at);
            found.push((tag, &bytes[at..at + length]));
            at += length;
        }
        found
    }
    fn write(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
        out.push(tag);
        let mut length = content.len();
        while length >= 0x80 {
            out.push(length.to_le_bytes()[0] | 0x80);
            length >>= 7;
        }
        out.push(length.to_le_bytes()[0]);
        out.extend(content);
    }
    const RAW: u8 = 2 << 3 | 2;
    let mut seeds = fixtures("kube/lists", "unknown-namespace.protobuf.body");
    for body in fixtures("kube/lists", "mixed.protobuf.body") {
        let envelope = fields(&body[4..]);
        let raw = envelope.iter().find(|(tag, _)| *tag == RAW);
        let list = fields(raw.expect("a list").1);
        for (_, pod) in list.iter().filter(|(tag, _)| *tag == RAW).step_by(4) {
            let mut page = Vec::new();
            for (tag, content) in list.iter().filter(|(tag, _)| *tag != RAW) {
                write(&mut page, *tag, content);
            }
            write(&mut page, RAW, pod);
            let mut seed = body[..4].to_vec();
            for (tag, content) in &envelope {
                write(&mut seed, *tag, if *tag == RAW { &page } else { content });
            }
            seeds.push(seed);
        }
    }
    seeds
}

fn kubeconfig() -> Vec<Vec<u8>> {
    let whole = |cluster: &str, user: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n- name: a\n  context: \
             {{cluster: c, user: u, namespace: shop}}\nclusters:\n- name: c\n  cluster:\n    server: \
             https://10.0.0.1:6443\n{cluster}users:\n- name: u\n  user:\n{user}"
        )
        .into_bytes()
    };
    vec![
        whole("", "    token: abc\n"),
        whole(
            "    certificate-authority-data: QUJD\n    tls-server-name: api\n    proxy-url: http://p:1\n",
            "    client-certificate-data: QUJD\n    client-key-data: QUJD\n",
        ),
        whole(
            "    insecure-skip-tls-verify: true\n    extensions:\n    - name: \
             client.authentication.k8s.io/exec\n      extension: {a: [1, {b: ~}]}\n",
            "    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: x\n      args: \
             [a, b]\n      env: [{name: A, value: b}]\n      interactiveMode: Never\n",
        ),
        whole("", "    username: &a x\n    password: *a\n"),
        whole("    disable-compression: true\n", "    auth-provider: {name: gcp}\n"),
        br#"{"current-context":"a","contexts":[{"name":"a","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":"http://h"}}]}"#.to_vec(),
    ]
}

/// An input of texts: options, then the texts with 0xff between them.
fn input(options: u8, texts: &[&[u8]]) -> Vec<u8> {
    let mut seed = vec![options];
    seed.extend(texts.join(&0xff));
    seed
}

fn store() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (index, file) in fixtures("scenarios", ".json").iter().enumerate() {
        let Ok(entries) =
            serde_json::from_slice::<std::collections::BTreeMap<String, String>>(file)
        else {
            // The pods of the scenarios.
            continue;
        };
        let entries = entries.iter().flat_map(|(key, value)| [key, value]);
        let entries =
            entries.map(|text| text.replace("\"file\"", "\"c1\"").replace(".file.", ".c1."));
        let entries = entries.map(String::into_bytes).collect::<Vec<_>>();
        let entries = entries.iter().map(Vec::as_slice).collect::<Vec<_>>();
        #[expect(clippy::cast_possible_truncation, reason = "any options")]
        seeds.push(input((index * 37) as u8, &entries));
    }
    seeds
}

fn mapping_of_pods() -> Vec<Vec<u8>> {
    let seed = |options, texts: &[&str]| {
        let texts = texts.iter().map(|text| text.as_bytes());
        input(options, &texts.collect::<Vec<_>>())
    };
    let backend = "vulcanized.io/backend";
    vec![
        seed(0, &["{name}", "{ip}", "app", "shop"]),
        seed(
            1,
            &[
                "{namespace}.{name}.svc",
                "{ip}:{port}",
                backend,
                "web:http, admin:9090",
            ],
        ),
        seed(
            4,
            &[
                "{namespace}_{label:x}",
                "{pod}",
                "x",
                "../../y",
                "app",
                "web",
            ],
        ),
        seed(
            128,
            &[
                "{namespace}:{annotation:y}",
                "{ip}",
                "y",
                "a/b",
                "vulcanized.io/port",
                "22",
            ],
        ),
        seed(
            0,
            &[
                "a\\{b{name}",
                "{ip}",
                "vulcanized.io/scheme",
                "https",
                "vulcanized.io/port",
                "admin",
            ],
        ),
        seed(0, &["{name}", "{ip}", "vulcanized.io/ignore", "true"]),
        seed(
            2,
            &[
                "{name}",
                "{annotation:z}",
                "z",
                "\u{1b}]0;x\u{7}\u{202e}",
                backend,
                "é:8",
            ],
        ),
    ]
}

fn store_file() -> Vec<Vec<u8>> {
    let mut seeds = fixtures("scenarios", "before.json");
    seeds.extend(fixtures("scenarios", "before.traefik.json"));
    seeds.push(
        br#"{"header":{"cluster_id":1,"member_id":2,"revision":7,"raft_term":2},"kvs":[{"key":"L3Z1bGNhbmQvYmFja2VuZHMvd2ViL2JhY2tlbmQ=","create_revision":2,"mod_revision":2,"version":1,"value":"eyJUeXBlIjoiaHR0cCJ9"}],"count":1}"#
            .to_vec(),
    );
    seeds
}

fn hostile_text() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 12] = [
        b"web",
        b"\x1b[2J\x1b]0;title\x07",
        "\u{9b}31m\u{202e}gro.live\u{2066}".as_bytes(),
        b"a\r\nb\tc",
        b"'; rm -rf $HOME; echo '",
        b"$(x)`y`\\\"",
        b"http://user:pass@10.0.0.1:80/",
        b"../../frontends/f",
        "é\u{200f}\u{2028}\u{7f}\u{85}\u{61c}".as_bytes(),
        b"10.0.0.1",
        b"--prefix",
        b"",
    ];
    (0..=255)
        .step_by(5)
        .map(|options| {
            let mut texts = texts.to_vec();
            texts.rotate_left(usize::from(options) % 12);
            input(options, &texts)
        })
        .collect()
}

/// Writes the seeds where `cargo fuzz` looks for them:
/// `cargo test --test integration -- --ignored fuzz::seeds`.
#[test]
#[ignore = "writes tests/fuzz/corpus"]
fn seeds() {
    for (name, _, seeds) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fuzz/corpus")
            .join(name);
        fs::create_dir_all(&folder).expect("a folder");
        for (index, seed) in seeds().iter().enumerate() {
            fs::write(folder.join(format!("seed-{index}")), seed).expect("a seed");
        }
    }
}

#[test]
fn every_fuzz_target_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/fuzz_targets");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        path.file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned()
    };
    let mut found = fs::read_dir(folder)
        .expect("a folder")
        .map(name)
        .collect::<Vec<_>>();
    found.sort();
    let mut known = TARGETS.map(|(name, ..)| name);
    known.sort_unstable();
    assert_eq!(found, known);
}

/// One change of a seed.
#[derive(Debug, Clone)]
enum Mutation {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, usize),
    Repeat(Index, usize, usize),
    Splice(Index, Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // What decides in one of the formats, and what a terminal reads.
    let bytes = prop_oneof![
        Just(b"/".to_vec()),
        Just(b"..".to_vec()),
        Just(b"'\"\\".to_vec()),
        Just(b"\xff".to_vec()),
        Just(b"null".to_vec()),
        Just(b"{}".to_vec()),
        Just(b"\n- &a [*a]".to_vec()),
        Just("\u{1b}\u{9b}\u{202e}".as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..8),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), bytes).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), 1..64_usize).prop_map(|(at, length)| Mutation::Cut(at, length)),
        (any::<Index>(), 1..64_usize, 1..20_usize)
            .prop_map(|(at, length, times)| Mutation::Repeat(at, length, times)),
        (any::<Index>(), any::<Index>(), any::<Index>())
            .prop_map(|(at, other, from)| Mutation::Splice(at, other, from)),
    ]
}

fn mutate(seeds: &[Vec<u8>], mut input: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let place = |at: &Index, length: usize| at.index(length + 1);
        match mutation {
            Mutation::Set(at, byte) => {
                if let Some(old) = input.len().checked_sub(1).map(|last| place(at, last)) {
                    input[old] = *byte;
                }
            }
            Mutation::Insert(at, bytes) => {
                let at = place(at, input.len());
                input.splice(at..at, bytes.iter().copied());
            }
            Mutation::Cut(at, length) => {
                let at = place(at, input.len());
                let end = input.len().min(at + length);
                input.drain(at..end);
            }
            Mutation::Repeat(at, length, times) => {
                let at = place(at, input.len());
                let end = input.len().min(at + length);
                let piece = input[at..end].repeat(*times);
                input.splice(at..at, piece);
            }
            Mutation::Splice(at, other, from) => {
                let other = &seeds[other.index(seeds.len())];
                let at = place(at, input.len());
                input.truncate(at);
                input.extend(&other[place(from, other.len())..]);
            }
        }
    }
    input
}

fn smoke(name: &str, cases: u32) {
    let (_, target, seeds) = TARGETS
        .into_iter()
        .find(|(known, ..)| *known == name)
        .expect("a target");
    let seeds = seeds();
    for seed in &seeds {
        target(seed);
    }
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    proptest!(config, |(
        seed in any::<Index>(),
        mutations in prop::collection::vec(mutation(), 0..6),
        rubbish in prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 0..200)),
    )| {
        let seed = rubbish.unwrap_or_else(|| seeds[seed.index(seeds.len())].clone());
        target(&mutate(&seeds, seed, &mutations));
    });
}

#[test]
fn pods_in_json() {
    smoke("pods_json", 2000);
}

#[test]
fn pods_in_protobuf() {
    smoke("pods_protobuf", 4000);
}

#[test]
fn kubeconfigs() {
    smoke("kubeconfig", 1000);
}

#[test]
fn stores() {
    smoke("store", 1000);
}

#[test]
fn mappings() {
    smoke("mapping_of_pods", 4000);
}

#[test]
fn store_files() {
    smoke("store_file", 1000);
}

#[test]
fn hostile_texts() {
    smoke("hostile_text", 300);
}

/// Runs the program with at most so many MiB of memory, and checks its exit code.
/// Returns its stderr.
#[track_caller]
fn within(mebibytes: u32, code: i32, what: &str, arguments: &[&str]) -> String {
    let kibibytes = (mebibytes * 1024).to_string();
    let output = std::process::Command::new("sh")
        .args(["-c", r#"ulimit -v "$0" && exec "$@""#, &kibibytes])
        .arg(env!("CARGO_BIN_EXE_vulcanized"))
        .args([
            "--owner",
            "prod",
            "--cluster",
            "c1",
            "--dry-run",
            "--create-backends",
        ])
        .args(arguments)
        .args(["--timeout", "10m", "--request-timeout", "5m"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .expect("the program starts");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let beginning = err.chars().take(500).collect::<String>();
    assert_eq!(output.status.code(), Some(code), "{what}: {beginning}");
    err
}

/// Inputs that are far larger than real ones, or expand when parsed: memory stays within a small multiple of the
/// input's size.
#[test]
fn memory_is_bounded_for_large_inputs() {
    const MEBI: usize = 1 << 20;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("it is written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let none = folder.path().join("none.json");
    let none = none.to_str().expect("UTF-8");
    let page = |more: &str, label: &str| {
        format!(
            r#"{{"kind":"PodList","metadata":{{"resourceVersion":"7"}},"items":[{{"kind":"Pod","metadata":{{"namespace":"shop","name":"web","labels":{{"app":"{label}"}}{more}}},"spec":{{"containers":[{{"ports":[{{"containerPort":80}}]}}]}},"status":{{"phase":"Running","podIP":"10.0.0.1","conditions":[{{"type":"Ready","status":"True"}}]}}}}]}}"#
        )
    };
    let deep = |size: usize| {
        let nested = "[".repeat(size / 2) + &"]".repeat(size / 2);
        page(&format!(r#","managedFields":{nested}"#), "web")
    };
    let label = page("", &"a/".repeat(5 * MEBI));

    // From a file, which is held as a whole.
    let pods = file("deep.json", &deep(100 * MEBI));
    within(400, 0, "nesting", &["--pods", &pods, "--store-file", none]);
    fs::remove_file(pods).expect("it was there");
    let pods = file("label.json", &label);
    let err = within(
        300,
        0,
        "a label",
        &["-v", "--pods", &pods, "--store-file", none],
    );
    assert!(err.contains("no backend id: `a/a/"), "{err}");
    assert!(err.len() < 1000, "{} bytes", err.len());

    // From the API server.
    for (what, body) in [("nesting", deep(100 * MEBI)), ("a label", label)] {
        let api = Api::start(move |_, _| Reply::new(200, "application/json", body.clone()));
        let kubeconfig = api.plain_kubeconfig();
        let kubeconfig = kubeconfig.path().to_str().expect("UTF-8");
        let arguments = [
            "--kubeconfig",
            kubeconfig,
            "-n",
            "shop",
            "--store-file",
            none,
        ];
        within(400, 0, what, &arguments);
    }

    // Keys and values of a store.
    let long = "k".repeat(10 * MEBI);
    let store = file(
        "store.json",
        &format!(
            r#"{{"/vulcand/backends/web/backend":"{{\"Type\":\"http\"}}","/vulcand/backends/{long}/backend":"{{}}","/vulcand/backends/web/servers/{long}":"{long}"}}"#
        ),
    );
    let pods = file("web.json", &page("", "web"));
    // One of the values is not a valid server.
    within(
        400,
        3,
        "long keys",
        &["--pods", &pods, "--store-file", &store],
    );

    // A kubeconfig that doubles with each line.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let before = format!("*a{}", level - 1);
        let ten = vec![before; 10].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{ten}]").expect("to memory");
    }
    bomb += "clusters: [{name: c, cluster: {extensions: [{name: e, extension: *a29}]}}]\n";
    let kubeconfig = file("bomb", &bomb);
    within(
        300,
        1,
        "aliases",
        &["--kubeconfig", &kubeconfig, "--store-file", none],
    );
    let nested = format!("clusters: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let kubeconfig = file("nested", &nested);
    within(
        300,
        1,
        "nesting",
        &["--kubeconfig", &kubeconfig, "--store-file", none],
    );
}
