//! Every scenario of `fixtures/scenarios` within this process: what a dry run and a run print, their exit codes and
//! the store afterwards are those of the golden files, which the integration tests write by the program itself.

use std::fs;
use std::path::Path;

use super::run;
use crate::config;
use crate::signals::Signals;

/// Runs with these options. Returns stdout and the exit code.
fn run_with(options: &[String], signals: &Signals) -> (String, u8) {
    let program = ["vulcanized", "--owner", "prod"].map(str::to_owned);
    let arguments = program.iter().chain(options).map(Into::into);
    let cli = config::parse(arguments).expect("the options are valid");
    let mut config = cli.config(&|_| None).expect("the options fit each other");
    config.output.color = Some(false);
    let mut out = Vec::new();
    let outcome = run(&config, signals, &mut config.reporter(&mut out)).expect("it succeeds");
    let out = String::from_utf8(out).expect("UTF-8");
    (out, outcome.exit.code())
}

#[test]
fn every_scenario_matches_its_golden_files() {
    let signals = Signals::install().expect("signal handlers");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scenarios");
    let store = tempfile::tempdir().expect("a temporary folder");
    let store = store.path().join("store.json");
    let mut checked = 0;
    for folder in fs::read_dir(scenarios).expect("scenarios") {
        let folder = folder.expect("one").path();
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let common = read("args").unwrap_or_default();
        for (layout, infix) in [("vulcand", ""), ("traefik", ".traefik")] {
            let name = |file: &str, end: &str| format!("{file}{infix}{end}");
            // Some scenarios exist only in vulcand's layout.
            let Some(plan) = read(&name("plan", ".diff")) else {
                continue;
            };
            let special = read("args.traefik").filter(|_| !infix.is_empty());
            let mut options = special.as_ref().unwrap_or(&common).clone();
            options += " --layout ";
            options += layout;
            let mut options = (options.split_whitespace())
                .map(str::to_owned)
                .collect::<Vec<_>>();
            for (option, path) in [
                ("--pods", &folder.join("pods.json")),
                ("--store-file", &store),
            ] {
                options.push(option.to_owned());
                options.push(path.display().to_string());
            }
            fs::copy(folder.join(name("before", ".json")), &store).expect("the store before");
            let dry = [&options[..], &["--dry-run".to_owned()]].concat();
            let after = read(&name("after", ".json")).expect("the store afterwards");
            for (options, golden) in [
                (&dry, plan),
                (&options, read(&name("applied", "")).expect("one")),
            ] {
                let (out, code) = run_with(options, &signals);
                let case = format!("{}: {options:?}", folder.display());
                // None of these runs prints anything to stderr.
                assert_eq!(format!("{out}exit code {code}\n"), golden, "{case}");
            }
            assert_eq!(
                fs::read_to_string(&store).expect("the store"),
                after,
                "{layout} {}",
                folder.display()
            );
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn only_the_expected_plan_is_applied() {
    let signals = Signals::install().expect("signal handlers");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scenarios/one_of_each");
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let store = temporary.path().join("store.json");
    fs::copy(folder.join("before.json"), &store).expect("the store before");
    let read = || fs::read_to_string(&store).expect("the store");
    let run = |more: &[&str]| {
        let pods = folder.join("pods.json").display().to_string();
        let path = store.display().to_string();
        let options = ["--pods", &pods, "--store-file", &path].into_iter();
        let options = options.chain(more.iter().copied()).map(str::to_owned);
        run_with(&options.collect::<Vec<_>>(), &signals)
    };
    let before = read();
    let (dry, _) = run(&["--dry-run"]);
    let name = dry.trim_end().rsplit_once("plan ").expect("its name").1;
    let other = if name == "00000000" {
        "00000001"
    } else {
        "00000000"
    };
    assert_eq!(run(&["--expect", other]).1, 5);
    assert_eq!(read(), before);
    let (_, code) = run(&["--expect", name]);
    assert_eq!((code, read() == before), (0, false));
}
