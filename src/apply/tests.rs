//! How far a run got: what is counted, what a lost answer turns out to be, and the messages.

use super::*;
use crate::config::{self, Config};
use crate::model::Snapshot;
use crate::reconcile::plan::{Action, Reason};
use crate::report::etcdctl::{Access, Api};
use crate::store::file::File;

const KEY: &str = "/vulcand/backends/web/servers/10.0.0.";
const VALUE: &str = r#"{"URL":"http://10.0.0.1:80"}"#;

fn config() -> Config {
    let options = "vulcanized --owner prod --pods - --store-file store.json";
    let cli = config::parse(options.split(' ').map(Into::into)).expect("valid options");
    let config = cli.config(&|_| None);
    config.expect("they fit each other")
}

fn create(n: u8) -> Change {
    Change {
        backend: "web".to_owned(),
        server: Some(format!("10.0.0.{n}")),
        key: format!("{KEY}{n}"),
        pod: None,
        action: Action::Create {
            after: VALUE.to_owned(),
            reason: Reason::Ready,
        },
        defined_by: None,
        extra: Vec::new(),
    }
}

fn observed(keys: &[(&str, &str)]) -> Observed {
    let entries = keys.iter().map(|(key, value)| crate::model::KeyValue {
        key: key.as_bytes().to_vec(),
        value: value.as_bytes().to_vec(),
        revision: 1,
    });
    let snapshot = Snapshot {
        revision: Some(1),
        ranges: vec![Ok(entries.collect())],
    };
    config().layout.observe(snapshot).expect("one prefix")
}

#[test]
fn a_failure_says_how_far_the_run_got() {
    let failed = |planned: usize, unknown: usize, lost: Option<&str>| {
        let mut progress = Progress {
            planned,
            applied: vec![create(1)],
            unknown: vec![create(2); unknown],
            lost: lost.map(|why| anyhow!(why.to_owned())),
            ..Progress::default()
        };
        format!("{:#}", progress.failed(anyhow!("cause")))
    };
    assert_eq!(failed(0, 0, None), "cause");
    assert_eq!(failed(3, 0, None), "applied 1 of 3 changes: cause");
    assert_eq!(
        failed(3, 2, Some("closed")),
        "applied 1 of 3 changes, 2 more unknown (closed): cause"
    );
}

#[test]
fn a_lost_answer_is_what_the_store_holds() {
    let config = config();
    let resolved = |keys: &[(&str, &str)]| {
        let mut out = Vec::new();
        let mut progress = Progress {
            unknown: vec![create(1), create(2)],
            lost: Some(anyhow!("closed")),
            ..Progress::default()
        };
        progress.resolve_unknown(&observed(keys), &mut config.reporter(&mut out));
        assert!(progress.unknown.is_empty() && progress.lost.is_none());
        let printed = String::from_utf8(out).expect("UTF-8").lines().count();
        (progress.applied.len(), printed)
    };
    let (one, two) = (format!("{KEY}1"), format!("{KEY}2"));
    assert_eq!(resolved(&[(&one, VALUE), (&two, VALUE)]), (2, 2));
    assert_eq!(resolved(&[]), (0, 0));
    assert_eq!(resolved(&[(&one, VALUE), (&two, "{}")]), (0, 0));
}

#[test]
fn failures_of_stdout_are_reported_at_the_end() {
    let printed = |unprinted: Option<&'static str>, last: anyhow::Result<()>| {
        let mut progress = Progress {
            planned: 1,
            applied: vec![create(1)],
            unprinted: unprinted.map(|why| anyhow!(why)),
            ..Progress::default()
        };
        let printed = progress.printed(last);
        printed.err().map(|error| format!("{error:#}"))
    };
    assert_eq!(printed(None, Ok(())), None);
    let full = Some("applied 1 of 1 changes: full".to_owned());
    assert_eq!(printed(Some("full"), Ok(())), full);
    assert_eq!(printed(None, Err(anyhow!("full"))), full);
}

#[test]
fn changes_of_all_attempts_count() {
    let config = config();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let deadline = crate::net::deadline::Deadline::start(config.timeout, config.timeout);
    let mut store =
        File::open(&folder.path().join("store.json"), false, deadline).expect("a store");
    store.list(&["/vulcand/"]).expect("it is empty");
    let plan = Plan {
        changes: vec![create(2), create(3)],
        ..Plan::default()
    };
    let mut progress = Progress {
        applied: vec![create(1)],
        ..Progress::default()
    };
    let signals = Signals::install().expect("signal handlers");
    let mut out = Vec::new();
    let mut reporter = config.reporter(&mut out);
    let (layout, observed) = (&*config.layout, observed(&[]));
    let applied = progress.apply(
        &mut store,
        &plan,
        layout,
        &observed,
        &signals,
        &mut reporter,
    );
    assert!(matches!(applied, Ok(Progressed::Done)));
    assert_eq!((progress.planned, progress.applied.len()), (3, 3));
}

#[test]
fn a_directory_in_the_way_comes_with_the_command_that_removes_it() {
    let etcdctl = Etcdctl::new(Api::V2, &Access::default());
    let text = |error: &ApplyError| wrong_node(error, &etcdctl);
    let directory = text(&ApplyError::Directory("/a/b".to_owned()));
    let key = text(&ApplyError::NotADirectory("/a/b".to_owned()));
    for (text, command) in [(directory, "rm --recursive"), (key, "rm")] {
        let wanted =
            format!(": if nothing uses it, remove it with: ETCDCTL_API=2 etcdctl {command} '/a/b'");
        assert!(text.ends_with(&wanted), "{text}");
    }
    let other = text(&ApplyError::Refused(anyhow!("no")));
    assert!(!other.contains("remove it"), "{other}");
}
