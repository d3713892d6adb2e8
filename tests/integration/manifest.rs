//! `cronjob.yaml`: its objects, and the arguments in it.

use clap::Parser as _;
use serde_json::{Value, json};
use vulcanized::internals::config::Cli;

fn objects() -> Vec<Value> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/cronjob.yaml"));
    serde_saphyr::from_multiple(&text.expect("cronjob.yaml")).expect("YAML")
}

fn object(kind: &str) -> Value {
    let found = objects()
        .into_iter()
        .filter(|object| object["kind"] == kind)
        .collect::<Vec<_>>();
    let [object] = found.as_slice() else {
        panic!("one {kind}, not {}", found.len())
    };
    object.clone()
}

#[test]
fn it_is_all_there() {
    let kinds = objects()
        .into_iter()
        .map(|object| object["kind"].clone())
        .collect::<Vec<_>>();
    assert_eq!(kinds, ["ServiceAccount", "Role", "RoleBinding", "CronJob"]);
}

#[test]
fn the_role_lists_pods_and_nothing_else() {
    let rule = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] }]);
    assert_eq!(object("Role")["rules"], rule);
    let binding = object("RoleBinding");
    assert_eq!(
        binding["roleRef"]["name"],
        object("Role")["metadata"]["name"]
    );
    assert_eq!(
        binding["subjects"][0]["name"],
        object("ServiceAccount")["metadata"]["name"]
    );
}

#[test]
fn its_arguments_are_understood() {
    let job = object("CronJob");
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().expect("arguments");
    let arguments = arguments
        .iter()
        .map(|argument| argument.as_str().expect("a string"));
    let cli = Cli::try_parse_from(std::iter::once("vulcanized").chain(arguments)).expect("parsed");
    let config = cli.config(&|_| None).expect("a configuration");
    assert_eq!(
        (config.owner.as_str(), config.cluster.as_ref()),
        ("prod", None),
        "the fingerprint alone tells the cluster"
    );
    let limit = job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"].as_u64();
    assert!(
        limit.expect("a limit") > config.timeout.as_secs(),
        "the program ends itself first"
    );
    assert_eq!(job["spec"]["concurrencyPolicy"], "Forbid");
    assert_eq!(job["spec"]["jobTemplate"]["spec"]["backoffLimit"], 0);
    assert_eq!(pod["restartPolicy"], "Never");
}
