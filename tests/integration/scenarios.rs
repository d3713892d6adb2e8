//! Each folder of `fixtures/scenarios` is a scenario: `pods.json` and `before.json` are its input, `plan.diff`,
//! `applied` and `after.json` the expected output of a dry run and a run; a second run must write nothing. Traefik's
//! layout starts from `before.traefik.json`. `BLESS=1` accepts new output.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::etcd::Etcd;
use crate::support::golden::golden;
use crate::support::program::{Answer, Program, vulcanized};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scenarios")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Vulcand,
    Traefik,
}

struct Scenario {
    layout: Layout,
    name: String,
    folder: PathBuf,
    store: tempfile::TempDir,
}

impl Scenario {
    fn open(folder: PathBuf) -> Self {
        Self::with_layout(folder, Layout::Vulcand)
    }

    fn with_layout(folder: PathBuf, layout: Layout) -> Self {
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let store = tempfile::tempdir().expect("a temporary folder");
        let before = folder.join(file_of_layout("before.json", layout));
        fs::copy(before, store.path().join("store.json")).expect("the store before");
        Self {
            layout,
            name,
            folder,
            store,
        }
    }

    fn store(&self) -> PathBuf {
        self.store.path().join("store.json")
    }

    fn program(&self) -> Program {
        let program = self.program_without_store();
        program.arg("--store-file").arg(self.store())
    }

    fn program_on(&self, etcd: &Etcd) -> Program {
        self.program_without_store().arg("--etcd").arg(etcd.url())
    }

    fn program_without_store(&self) -> Program {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let args = match self.layout {
            Layout::Vulcand => None,
            Layout::Traefik => Some(read("args.traefik").unwrap_or_default() + "--layout traefik "),
        };
        let common = if self.layout == Layout::Traefik && read("args.traefik").is_some() {
            None
        } else {
            read("args")
        };
        let more = args.unwrap_or_default() + &common.unwrap_or_default();
        vulcanized(&format!("--owner prod {more}"))
            .arg("--pods")
            .arg(self.folder.join("pods.json"))
    }

    /// Compares with the golden file of this name in the scenario's folder.
    fn compare(&self, file: &str, got: &str) {
        golden(&self.folder.join(file_of_layout(file, self.layout)), got);
    }

    fn read(&self) -> String {
        fs::read_to_string(self.store()).expect("the store")
    }

    /// Dry run, run and second run.
    fn check(&self) {
        let transcript =
            |Answer { code, out, err }: Answer| format!("{out}{err}exit code {code}\n");
        let before = self.read();
        let plan = self.program().arg("--dry-run").run();
        let colour = self
            .program()
            .arg("--dry-run")
            .arg("--color")
            .arg("always")
            .run();
        assert_eq!(
            before,
            self.read(),
            "{}: a dry run writes nothing",
            self.name
        );
        assert_eq!(plan.code, colour.code);
        // Colour adds only escape sequences; otherwise there are no control characters.
        let mut plain = colour.out;
        for code in ["0", "1", "31", "32", "33", "36"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(plan.out, plain, "{}", self.name);
        let control = |c: char| c.is_control() && c != '\n';
        assert!(
            !plan.out.contains(control),
            "{}: a control character",
            self.name
        );
        self.compare("plan.diff", &transcript(plan));
        let applied = self.program().run();
        self.compare("applied", &transcript(applied));
        self.compare("after.json", &self.read());
        let modified = fs::metadata(self.store())
            .expect("the store")
            .modified()
            .expect("a time");
        let again = self.program().run();
        assert!(matches!(again.code, 0 | 3), "{}: {again}", self.name);
        let after = fs::metadata(self.store())
            .expect("the store")
            .modified()
            .expect("a time");
        assert_eq!(
            modified, after,
            "{}: the second run writes nothing: {again}",
            self.name
        );
    }
}

/// The name of a scenario's file in this layout: `plan.diff` is `plan.traefik.diff` for Traefik.
fn file_of_layout(file: &str, layout: Layout) -> String {
    match (layout, file.split_once('.')) {
        (Layout::Vulcand, _) => file.to_owned(),
        (Layout::Traefik, Some((name, ending))) => format!("{name}.traefik.{ending}"),
        (Layout::Traefik, None) => format!("{file}.traefik"),
    }
}

#[test]
fn every_scenario_in_traefiks_layout() {
    let folders = fs::read_dir(folder()).expect("scenarios");
    let folders = folders.map(|entry| entry.expect("one").path());
    // Traefik has no definitions to create.
    let is_vulcand_only = |folder: &Path| {
        let args = fs::read_to_string(folder.join("args")).unwrap_or_default();
        args.contains("--create-backends")
    };
    let folders = folders.filter(|folder| !is_vulcand_only(folder));
    let scenarios = folders
        .map(|folder| Scenario::with_layout(folder, Layout::Traefik))
        .collect::<Vec<_>>();
    assert!(scenarios.len() > 40, "the scenarios are there");
    for scenario in scenarios {
        scenario.check();
    }
}

#[test]
fn every_scenario() {
    let folders = fs::read_dir(folder())
        .expect("scenarios")
        .map(|entry| entry.expect("one").path());
    let scenarios = folders.map(Scenario::open).collect::<Vec<_>>();
    assert!(scenarios.len() > 40, "the scenarios are there");
    for scenario in scenarios {
        scenario.check();
    }
}

fn scenario(name: &str) -> Scenario {
    Scenario::open(folder().join(name))
}

#[test]
fn every_finding_and_its_healthy_twin() {
    let names = fs::read_dir(folder()).expect("scenarios").map(|entry| {
        entry
            .expect("one")
            .file_name()
            .into_string()
            .expect("UTF-8")
    });
    let names = names
        .filter(|name| name.starts_with("finding_"))
        .collect::<Vec<_>>();
    let (healthy, broken) = names
        .iter()
        .partition::<Vec<_>, _>(|name| name.ends_with("_healthy"));
    assert!(broken.len() >= 10 && healthy.len() >= 10);
    for name in healthy.into_iter().chain(broken) {
        for layout in [Layout::Vulcand, Layout::Traefik] {
            let scenario = Scenario::with_layout(folder().join(name), layout);
            let answer = scenario.program().arg("--dry-run").run();
            let found = answer.out.matches("finding: ").count();
            // Unlike vulcand, Traefik does not mix up services with a common prefix.
            let harmless = layout == Layout::Traefik && name == "finding_bleeding";
            let expected = usize::from(!name.ends_with("_healthy") && !harmless);
            assert_eq!(found, expected, "{name}: {answer}");
        }
    }
}

#[test]
fn report_lines_fit_80_columns() {
    for entry in fs::read_dir(folder()).expect("scenarios") {
        for file in [
            "plan.diff",
            "applied",
            "plan.traefik.diff",
            "applied.traefik",
        ] {
            let path = entry.as_ref().expect("one").path().join(file);
            // Some scenarios exist only in vulcand's layout.
            let optional = file.contains("traefik");
            let Ok(text) = fs::read_to_string(&path) else {
                assert!(optional, "{}", path.display());
                continue;
            };
            for line in text.lines() {
                // Lines that hold keys, values or commands may be longer.
                let is_data = ["+", "-", "@", "    ", "~"]
                    .iter()
                    .any(|sign| line.starts_with(sign));
                let long = line.chars().count() > 80 && !is_data;
                assert!(!long, "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn everything_in_colour_and_in_json() {
    let everything = scenario("everything");
    let colour = everything
        .program()
        .arg("--dry-run")
        .arg("--color")
        .arg("always")
        .run();
    everything.compare("plan.color", &colour.out);
    assert!(colour.out.contains("\u{1b}[31m-{"), "deletes are red");
    let dry = everything
        .program()
        .arg("--dry-run")
        .arg("-o")
        .arg("json")
        .run();
    everything.compare(
        "plan.json",
        &dry.out.replace(env!("CARGO_PKG_VERSION"), "VERSION"),
    );
    let applied = everything.program().arg("-o").arg("json").run();
    let changes = |answer: &Answer| {
        let report = serde_json::from_str::<serde_json::Value>(&answer.out).expect("JSON");
        (
            report["changes"].clone(),
            report["held"].clone(),
            report["kept"].clone(),
        )
    };
    assert_eq!(
        changes(&dry),
        changes(&applied),
        "a run applies what the dry run planned"
    );
    assert_ne!(changes(&dry).0.as_array().map_or(0, Vec::len), 0);
}

#[test]
fn held_changes_need_their_number_in_allow_deletes() {
    for name in [
        "held_relabelled",
        "held_port",
        "held_empty",
        "adopt_scope_wrong_cluster",
        "everything",
    ] {
        let scenario = scenario(name);
        let store = || {
            let text = scenario.read();
            serde_json::from_str::<std::collections::BTreeMap<String, String>>(&text).expect("JSON")
        };
        let before = store();
        let plan = scenario
            .program()
            .arg("--dry-run")
            .arg("-o")
            .arg("json")
            .run();
        let plan = serde_json::from_str::<serde_json::Value>(&plan.out).expect("JSON");
        let held = plan["held"].as_array().expect("held").iter();
        let held = held.map(|held| held["key"].as_str().expect("a key").to_owned());
        let held = held.collect::<Vec<_>>();
        assert!(!held.is_empty(), "{name}");
        let first = scenario.program().exits(3);
        let after = store();
        for key in &held {
            assert_eq!(before.get(key), after.get(key), "{name}: {key} is held");
        }
        for change in plan["changes"].as_array().expect("changes") {
            if change["action"] == "create" {
                assert!(
                    after.contains_key(change["key"].as_str().expect("a key")),
                    "{name}"
                );
            }
        }
        let number = first
            .out
            .split("--allow-deletes ")
            .nth(1)
            .expect("the number is printed");
        let number = number
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .expect("a number");
        let number = number.parse::<usize>().expect("a number");
        let with = |number: usize| {
            scenario
                .program()
                .arg(format!("--allow-deletes={number}"))
                .run()
        };
        let less = with(number - 1);
        assert!(
            less.code == 3 && less.out.contains("held: "),
            "{name}: {less}"
        );
        assert_eq!(
            store(),
            after,
            "{name}: a number that is too small releases no hold"
        );
        let enough = with(number);
        assert!(!enough.out.contains("held: "), "{name}: {enough}");
        assert!(
            held.iter().all(|key| after.get(key) != store().get(key)),
            "{name}: {enough}"
        );
    }
}

#[test]
fn exit_code_4_means_pending_changes() {
    let changes = scenario("first_run");
    changes
        .program()
        .arg("--dry-run")
        .arg("--exit-code")
        .exits(4);
    changes.program().arg("--dry-run").exits(0);
    changes.program().arg("--exit-code").exits(2);
    changes.program().exits(0);
    changes
        .program()
        .arg("--dry-run")
        .arg("--exit-code")
        .exits(0);
    // 3 takes precedence over 4.
    scenario("held_relabelled")
        .program()
        .arg("--dry-run")
        .arg("--exit-code")
        .exits(3);
}

#[test]
fn suggested_commands_change_only_their_key() {
    let etcd = Etcd::start();
    let mut commands = 0;
    for entry in fs::read_dir(folder()).expect("scenarios") {
        let scenario = Scenario::open(entry.expect("one").path());
        let before = serde_json::from_str::<BTreeMap<String, String>>(&scenario.read());
        let before = before.expect("keys and values");
        for prefix in ["/", "v", "x"] {
            etcd.ctl(&["del", "--prefix", prefix]);
        }
        etcd.put_all(&before.into_iter().collect::<Vec<_>>());
        let dry_run = scenario.program_on(&etcd).arg("--dry-run").run();
        let suggested = dry_run.out.lines().map(str::trim);
        for command in suggested.filter(|line| line.starts_with("etcdctl ")) {
            let now = || {
                let all = ["/", "v", "x"].iter().flat_map(|prefix| etcd.get(prefix));
                all.collect::<BTreeMap<_, _>>()
            };
            let mut expected = now();
            let output = std::process::Command::new("sh")
                .args(["-c", command])
                .output()
                .expect("sh runs");
            assert!(output.status.success(), "{command}: {output:?}");
            let parts = command.split('\'').collect::<Vec<_>>();
            match (parts[0], &parts[1..]) {
                ("etcdctl put ", [key, " ", value, ..]) => {
                    expected.insert((*key).to_owned(), (*value).to_owned());
                }
                ("etcdctl del ", [key, ..]) => {
                    assert!(expected.remove(*key).is_some(), "{command}");
                }
                _ => panic!("{command}"),
            }
            assert!(command.ends_with(&format!(" --endpoints='{}'", etcd.url())));
            assert_eq!(now(), expected, "{command}");
            commands += 1;
        }
    }
    assert!(commands >= 8, "{commands}");
    let hostile = scenario("finding_hostile_key")
        .program()
        .arg("--dry-run")
        .exits(3);
    assert!(!hostile.out.contains("etcdctl"), "{hostile}");
}

#[test]
fn every_pod_left_out_has_a_reason() {
    let answer = scenario("hostile_labels")
        .program()
        .arg("--dry-run")
        .arg("-v")
        .exits(0);
    assert_eq!(answer.err.matches("is left out").count(), 7, "{answer}");
    let diff = scenario("none_published").program().run();
    assert_eq!(
        diff.out.lines().last(),
        Some("0 of 3 pods published: 3 without a backend")
    );
    let summary = scenario("none_published")
        .program()
        .arg("-o")
        .arg("summary")
        .run();
    assert_eq!(summary.out.lines().count(), 1, "{summary}");
}
