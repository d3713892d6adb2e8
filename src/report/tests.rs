//! Every sentence of this folder, each with what it is about, as `fixtures/looks/messages.txt` has it.
//! `BLESS=1` accepts what comes out: read it as somebody who has not seen the code.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::etcdctl::{Access, Api};
use super::notes::no_backends;
use super::reasons;
use super::{Etcdctl, Style, diff, etcdctl};
use crate::layout::{self, Contents, Fault, Observed, Refusal, Sibling, SiblingKind, Undefined};
use crate::model::{PodName, ServerUrl};
use crate::reconcile::classify::{Class, Dead, Leaving, Unproved};
use crate::reconcile::findings::Finding;
use crate::reconcile::hold::Grounds;
use crate::reconcile::map::SkipReason;
use crate::reconcile::plan::{
    Conflict, DeleteLimit, Duplicate, Emptied, Freeze, Frozen, Held, Kept, LeftOut, Losing,
    NoBackends, OutOfScope, OverBudget, Plan, ScopeDiffers,
};

#[path = "../../tests/integration/support/golden.rs"]
#[expect(unreachable_pub, reason = "the integration tests share this module")]
mod golden;

fn pod(name: &str) -> PodName {
    PodName::parse(&format!("shop/{name}")).expect("a name")
}

fn losing(after: Option<&str>) -> Losing {
    Losing {
        backend: "web".to_owned(),
        server: "10.0.0.1".to_owned(),
        key: "/vulcand/backends/web/servers/10.0.0.1".to_owned(),
        namespace: "shop".to_owned(),
        pod: Some(pod("web-1")),
        wanted_by: None,
        before: br#"{"URL":"http://10.0.0.1:8080"}"#.to_vec(),
        revision: 7,
        after: after.map(str::to_owned),
        defined_by: None,
        extra: Vec::new(),
    }
}

fn etcdctl(api: Option<Api>) -> Etcdctl {
    let access = Access {
        endpoints: Some("http://etcd:2379".to_owned()),
        ..Access::default()
    };
    api.map_or(etcdctl::NO_ETCDCTL, |api| Etcdctl::new(api, &access))
}

/// The notes of a plan, as a person sees them, at 100 columns.
fn printed(plan: &Plan, api: Option<Api>) -> String {
    let etcdctl = etcdctl(api);
    let mut out = Vec::new();
    let style = Style {
        color: false,
        width: 100,
        etcdctl: &etcdctl,
    };
    diff::tail(&mut out, plan, std::iter::empty(), false, style).expect("memory takes all");
    let text = String::from_utf8(out).expect("UTF-8");
    // The last line is the counts.
    let notes = text.lines().take_while(|line| !is_counts(line));
    notes.collect::<Vec<_>>().join("\n")
}

fn is_counts(line: &str) -> bool {
    line.starts_with("nothing to change") || line.starts_with("in sync")
}

fn url() -> ServerUrl {
    ServerUrl::parse("http://10.0.0.9:8080").expect("a URL")
}

fn unproved() -> Vec<Unproved> {
    vec![
        Unproved::Unmapped(None),
        Unproved::Unmapped(Some(SkipReason::SeveralPorts)),
        Unproved::Changed(url()),
        Unproved::Unselected,
        Unproved::Refused("pods is forbidden".to_owned()),
        Unproved::NoWitness,
        Unproved::Unreadable,
        Unproved::Adopted,
    ]
}

fn all_grounds() -> Vec<Grounds> {
    let dead = [
        Dead::Completed,
        Dead::Terminating,
        Dead::Moved("10.0.0.2".parse().expect("an address")),
        Dead::NoAddress,
        Dead::Reused(pod("api-1")),
        Dead::Gone,
    ];
    let leaving = [Leaving::Terminating, Leaving::NotReady];
    let mut all = vec![Grounds::NoUrl, Grounds::Stays("10.0.0.1:8080".to_owned())];
    all.extend(dead.clone().map(Grounds::Dead));
    all.extend(leaving.map(Grounds::Leaving));
    all.extend(unproved().into_iter().map(Grounds::Outnumbered));
    all.push(Grounds::Released(Class::Dead(Dead::Gone)));
    all.push(Grounds::Released(Class::Leaving(Leaving::NotReady)));
    all.push(Grounds::Released(Class::Unproved(Unproved::NoWitness)));
    all
}

fn faults() -> Vec<Fault> {
    vec![
        Fault::Null,
        Fault::Malformed,
        Fault::NoUrl,
        Fault::Refused("Id"),
        Fault::NoHost,
        Fault::Unreachable,
        Fault::SlashInId,
        Fault::BareDirectory(Contents::Nothing),
        Fault::BareDirectory(Contents::EmptyServers),
        Fault::BareDirectory(Contents::Other),
        Fault::Directory(true),
        Fault::Directory(false),
        Fault::NotADirectory,
        Fault::Freezes,
        Fault::UrlMissing,
        Fault::Disables,
        Fault::OtherSpelling,
        Fault::NoRouter,
    ]
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::Null,
        Refusal::Syntax,
        Refusal::NotAnObject,
        Refusal::NoType,
        Refusal::Field {
            field: "Settings.KeepAlive.Period".to_owned(),
            value: "\"soon\"".to_owned(),
            wanted: "a duration with a unit, such as `4s`",
        },
        Refusal::Directory { empty: true },
        Refusal::OtherType("weighted".to_owned()),
    ]
}

fn definition() -> (String, String) {
    let key = "/vulcand/backends/web/backend".to_owned();
    (key, r#"{"Type":"http"}"#.to_owned())
}

/// Plans with one thing to say each, but for findings.
#[expect(clippy::too_many_lines, reason = "a table")]
fn plans() -> Vec<(String, Plan)> {
    let mut plans = Vec::new();
    let mut add = |name: String, change: &dyn Fn(&mut Plan)| {
        let mut plan = Plan {
            scope: "main@3f2a91c0 app=web".to_owned(),
            ..Plan::default()
        };
        plan.counts.pods = 3;
        plan.counts.published = 3;
        change(&mut plan);
        plans.push((name, plan));
    };
    let update = r#"{"URL":"http://10.0.0.9:8080"}"#;
    for evidence in unproved() {
        for after in [None, Some(update)] {
            add(format!("{evidence:?}, {after:?}"), &|plan| {
                plan.held.push(Held {
                    entry: losing(after),
                    evidence: evidence.clone(),
                    lost: 2,
                    remain: 1,
                });
            });
        }
    }
    for everywhere in [false, true] {
        add(format!("kept, everywhere: {everywhere}"), &|plan| {
            plan.kept_everywhere = everywhere;
            plan.kept.push(Kept {
                backend: "web".to_owned(),
                servers: vec![losing(None)],
            });
        });
    }
    for count in [1, 2] {
        add(format!("emptied, {count}"), &|plan| {
            plan.emptied.push(Emptied {
                backend: "web".to_owned(),
                pods: vec![
                    LeftOut {
                        pod: pod("web-1"),
                        reason: SkipReason::SeveralPorts
                    };
                    count
                ],
            });
        });
    }
    for limit in [DeleteLimit::Servers(3), DeleteLimit::Percent(10)] {
        add(format!("over budget, {limit}"), &|plan| {
            plan.over_budget = Some(OverBudget {
                lost: 4,
                owned: 20,
                limit,
                entries: vec![losing(None)],
            });
        });
    }
    for owner in [None, Some("blue".to_owned())] {
        add(format!("conflict, {owner:?}"), &|plan| {
            plan.conflicts.push(Conflict {
                backend: "web".to_owned(),
                key: "/vulcand/backends/web/servers/10.0.0.9".to_owned(),
                pod: pod("web-9"),
                wanted: url(),
                value: b"null".to_vec(),
                owner: owner.clone(),
            });
        });
    }
    add("duplicate".to_owned(), &|plan| {
        plan.duplicates.push(Duplicate {
            key: "/vulcand/backends/web/servers/10.0.0.9".to_owned(),
            winner: pod("web-1"),
            loser: pod("web-2"),
            url: url(),
        });
    });
    for (differs, scope) in [
        (ScopeDiffers::Cluster, "main@3f2a91c0 app=web"),
        (ScopeDiffers::Cluster, "file"),
        (ScopeDiffers::Selectors, "main@3f2a91c0"),
        (ScopeDiffers::Namespace, "main@3f2a91c0"),
    ] {
        add(format!("out of scope, {differs:?}, {scope}"), &|plan| {
            plan.scope = scope.to_owned();
            plan.out_of_scope.push(OutOfScope {
                key: "/vulcand/backends/web/servers/10.0.0.9".to_owned(),
                scope: "main@11111111 app=web".to_owned(),
                pod: Some(pod("web-9")),
                differs,
            });
        });
    }
    let two = || ["blue".to_owned(), "green".to_owned()].into();
    let mut frozen = vec![Freeze::Owners(two()), Freeze::Clusters(two())];
    frozen.extend(
        [Undefined::Stops, Undefined::Unrouted].map(|effect| Freeze::Undefined {
            define: vec![definition()],
            effect,
        }),
    );
    frozen.extend(refusals().into_iter().map(|refusal| Freeze::Broken {
        key: definition().0,
        mend: Some(definition().1),
        refusal,
    }));
    frozen.push(Freeze::Bleeds("we".to_owned()));
    add("many that begin alike".to_owned(), &|plan| {
        plan.undefined.extend((0..20).map(|number| Frozen {
            backend: format!("web{number}"),
            left_out: 1,
            ours: 0,
            why: Freeze::Bleeds("web".to_owned()),
        }));
    });
    for why in frozen {
        add(format!("{why:?}"), &|plan| {
            let frozen = Frozen {
                backend: "web".to_owned(),
                left_out: 2,
                ours: 1,
                why: why.clone(),
            };
            if matches!(why, Freeze::Owners(_) | Freeze::Clusters(_)) {
                plan.unshared.push(frozen);
            } else {
                plan.undefined.push(frozen);
            }
        });
    }
    plans
}

fn findings() -> Vec<Finding> {
    let mut findings = Vec::new();
    for effect in [Undefined::Stops, Undefined::Unrouted] {
        findings.push(Finding::Undefined {
            backend: "web".to_owned(),
            servers: 2,
            define: vec![definition()],
            effect,
        });
    }
    findings.extend(
        refusals()
            .into_iter()
            .map(|refusal| Finding::BrokenDefinition {
                key: definition().0,
                mend: Some(definition().1),
                refusal,
            }),
    );
    findings.extend(faults().into_iter().map(|fault| Finding::Fault {
        key: "/vulcand/backends/web/servers/a".to_owned(),
        fault,
    }));
    findings.push(Finding::Bleeds {
        pairs: 3,
        examples: vec![("web".to_owned(), "web-2".to_owned())],
    });
    for kind in [SiblingKind::Spelling, SiblingKind::Predecessor] {
        findings.push(Finding::Sibling {
            prefix: "/vulcand".to_owned(),
            sibling: sibling(kind),
            root_option: "-etcdKey=/vulcand".to_owned(),
        });
    }
    let ip = "10.0.0.9".parse().expect("an address");
    findings.push(Finding::TwoOwners {
        ip,
        entries: vec![(
            "/vulcand/backends/web/servers/a".to_owned(),
            "blue".to_owned(),
        )],
    });
    findings.push(Finding::Stranger {
        backend: "web".to_owned(),
        key: "/vulcand/backends/web/servers/a".to_owned(),
        ip,
        pod: pod("api-1"),
    });
    findings
}

fn sibling(kind: SiblingKind) -> Sibling {
    let prefix = match kind {
        SiblingKind::Spelling => "vulcand",
        SiblingKind::Predecessor => "/vulcan",
    };
    Sibling {
        prefix: prefix.to_owned(),
        backends: 2,
        kind,
    }
}

fn no_backend_at_all(text: &mut String) {
    let none = NoBackends {
        prefix: "/vulcand".to_owned(),
        wanted: 2,
        example: "web".to_owned(),
    };
    for name in ["vulcand", "traefik"] {
        let layout = layout::open(name, layout::Options::default()).expect("a layout");
        for siblings in [
            vec![],
            vec![
                sibling(SiblingKind::Spelling),
                sibling(SiblingKind::Predecessor),
            ],
        ] {
            let observed = Observed {
                siblings,
                ..Observed::default()
            };
            let error = no_backends(&none, &observed, &*layout, &etcdctl(Some(Api::V3)));
            let _ = writeln!(
                text,
                "\n# no backend at all, {name}, {:?}\n{error}",
                observed.siblings
            );
        }
    }
}

#[test]
fn every_message_is_in_a_golden_file() {
    let mut text = String::new();
    for grounds in all_grounds() {
        let why = reasons::grounds("pod shop/web-1", &grounds);
        let _ = writeln!(text, "# {grounds:?}\n{why}");
    }
    for (name, plan) in plans() {
        let _ = writeln!(
            text,
            "\n# {name}\n{}",
            printed(&plan, Some(Api::V3)).trim_end()
        );
    }
    for finding in findings() {
        let _ = writeln!(text, "\n# {finding:?}");
        // What is the same for several stores is said once.
        let mut all = BTreeMap::<String, Vec<&str>>::new();
        for (name, api) in [
            ("a file", None),
            ("v2", Some(Api::V2)),
            ("v3", Some(Api::V3)),
        ] {
            let mut plan = Plan::default();
            plan.counts.pods = 1;
            plan.counts.published = 1;
            plan.findings.push(finding.clone());
            all.entry(printed(&plan, api)).or_default().push(name);
        }
        for (said, names) in all {
            let _ = writeln!(text, "({})\n{}", names.join(", "), said.trim_end());
        }
    }
    no_backend_at_all(&mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/looks/messages.txt");
    golden::golden(&path, &text);
}
