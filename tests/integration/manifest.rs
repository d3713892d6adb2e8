//! `cronjob.yaml`: its objects, and the arguments in it.

use std::fs;
use std::process::Command;

use clap::Parser as _;
use serde_json::{Value, json};
use vulcanized::internals::config::Cli;

use crate::docs::{blocks, sh};
use crate::support::api::{Api, Reply};
use crate::support::etcd::test_tools;

fn manifest() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cronjob.yaml");
    fs::read_to_string(path).expect("cronjob.yaml")
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

fn object(kind: &str) -> Value {
    object_of(&manifest(), kind)
}

fn object_of(text: &str, kind: &str) -> Value {
    let found = objects(text)
        .into_iter()
        .filter(|object| object["kind"] == kind)
        .collect::<Vec<_>>();
    let [object] = found.as_slice() else {
        panic!("one {kind}, not {}", found.len())
    };
    object.clone()
}

#[test]
fn the_manifest_has_every_object() {
    let kinds = objects(&manifest())
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
fn the_arguments_are_valid() {
    let job = object("CronJob");
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let arguments = arguments_of(&job);
    let cli = Cli::try_parse_from(std::iter::once("vulcanized".to_owned()).chain(arguments))
        .expect("parsed");
    let config = cli.config(&|_| None).expect("a configuration");
    assert_eq!(
        (config.owner.as_str(), config.cluster.as_ref()),
        ("prod", None),
        "the fingerprint alone identifies the cluster"
    );
    let limit = job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"].as_u64();
    assert!(
        limit.expect("a limit") > config.timeout.as_secs(),
        "the program's own timeout comes first"
    );
    assert_eq!(job["spec"]["concurrencyPolicy"], "Forbid");
    assert_eq!(job["spec"]["jobTemplate"]["spec"]["backoffLimit"], 0);
    assert_eq!(pod["restartPolicy"], "Never");
}

/// Validates a manifest against the real schema, unknown fields refused: whether it is valid, and the output.
fn validate(text: &str) -> (bool, String) {
    let file = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .expect("a temporary file");
    fs::write(file.path(), text).expect("it is written");
    let output = Command::new("python3")
        .env("PYTHONPATH", test_tools())
        .args([
            "-c",
            "import sys; from kubernetes_validate.__main__ import main; sys.exit(main())",
        ])
        .args(["--strict"])
        .arg(file.path())
        .output()
        .expect("python3 runs");
    let printed = [output.stdout, output.stderr];
    let printed = printed.map(|text| String::from_utf8(text).expect("UTF-8"));
    (output.status.success(), printed.concat())
}

/// The manifest with the comment markers removed from the line with `first` to the line with `last`.
fn uncommented(text: &str, first: &str, last: &str) -> String {
    let mut is_in = false;
    let mut found = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        is_in |= !found && line.contains(first);
        if is_in {
            assert!(line.trim_start().starts_with('#'), "{line}");
            let line = line.replacen("# ", "", 1);
            lines.push(if line.trim() == "#" {
                String::new()
            } else {
                line
            });
        } else {
            lines.push(line.to_owned());
        }
        if is_in && line.contains(last) {
            (is_in, found) = (false, true);
        }
    }
    assert!(found, "{first} to {last}");
    lines.join("\n") + "\n"
}

/// The arguments of the container in a job or cron job. Checks that the program accepts them.
fn arguments_of(job: &Value) -> Vec<String> {
    let pod = match job["kind"].as_str() {
        Some("CronJob") => &job["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        _ => &job["spec"]["template"]["spec"],
    };
    let arguments = pod["containers"][0]["args"].as_array().expect("arguments");
    let arguments = arguments
        .iter()
        .map(|argument| argument.as_str().expect("a string").to_owned());
    let arguments = arguments.collect::<Vec<_>>();
    let given = std::iter::once("vulcanized").chain(arguments.iter().map(String::as_str));
    let cli = Cli::try_parse_from(given).expect("parsed");
    let env = |name: &str| (name == "VULCANIZED_PASSWORD").then(|| "secret".into());
    assert!(cli.config(&env).is_ok(), "{arguments:?}");
    arguments
}

#[test]
fn the_manifest_and_its_variants_match_the_schema() {
    let manifest = manifest();
    let (valid, output) = validate(&manifest);
    assert!(valid, "{output}");
    let (valid, output) = validate(&manifest.replace("backoffLimit:", "backoffLimits:"));
    assert!(!valid, "a misspelt field must fail: {output}");
    let without = |names: &[&str]| {
        let lines = manifest.lines();
        let is_other = |line: &&str| {
            !names
                .iter()
                .any(|name| line.contains(&format!("- --{name}=")))
        };
        lines.filter(is_other).collect::<Vec<_>>().join("\n") + "\n"
    };
    let password = without(&["cert", "key"]);
    for (variant, argument) in [
        (
            uncommented(&manifest, "- --layout=traefik", "- --layout"),
            "--layout=traefik",
        ),
        (
            uncommented(&manifest, "- --namespace=shop", "- --backend"),
            "--backend={namespace}.{name}.svc",
        ),
        (
            uncommented(&manifest, "- --alarm-exit-code", "- --metrics-push"),
            "--alarm-exit-code=0",
        ),
        (
            uncommented(&password, "# env:", "key: password"),
            "--timeout=45s",
        ),
        (without(&["cacert", "cert", "key"]), "--timeout=45s"),
        (
            uncommented(&manifest, "# ---", "port: 2379"),
            "--timeout=45s",
        ),
    ] {
        let (valid, output) = validate(&variant);
        assert!(valid, "{output}: {variant}");
        assert!(variant != manifest);
        let arguments = arguments_of(&object_of(&variant, "CronJob"));
        assert!(
            arguments.iter().any(|given| given == argument),
            "{arguments:?}"
        );
    }
    let policy = uncommented(&manifest, "# ---", "port: 2379");
    object_of(&policy, "NetworkPolicy");
}

#[test]
fn a_job_created_from_the_cronjob_with_another_flag() {
    let commands = blocks("console")
        .into_iter()
        .find(|block| block.contains("create job"));
    let commands = commands.expect("the README's");
    let command = |part: &str| {
        let line = commands.lines().find(|line| line.contains(part));
        line.and_then(|line| line.strip_prefix("$ "))
            .expect(part)
            .to_owned()
    };
    // A suspended CronJob is valid and creates no jobs.
    let suspended = command("suspend: true");
    let suspended = suspended.split(" | ").next().expect("a first");
    let suspended = sh(suspended, &[]).out;
    assert_eq!(object_of(&suspended, "CronJob")["spec"]["suspend"], true);
    assert!(validate(&suspended).0);
    // The real kubectl creates a job from the CronJob that the API server returns.
    // kubectl reads YAML 1.1, where 0440 is octal; the parser used here does not.
    let stored = object_of(&manifest().replace("0440", "288"), "CronJob");
    let api = Api::start(move |request, _| match request.path.as_str() {
        "/apis/batch/v1/namespaces/default/cronjobs/vulcanized" => Reply::json(200, &stored),
        "/api" => Reply::json(200, &json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => Reply::json(
            200,
            &json!({
                "kind": "APIGroupList", "apiVersion": "v1",
                "groups": [{
                    "name": "batch",
                    "versions": [{"groupVersion": "batch/v1", "version": "v1"}],
                    "preferredVersion": {"groupVersion": "batch/v1", "version": "v1"},
                }],
            }),
        ),
        "/api/v1" => Reply::json(
            200,
            &json!({
                "kind": "APIResourceList", "groupVersion": "v1", "resources": [],
            }),
        ),
        "/apis/batch/v1" => Reply::json(
            200,
            &json!({
                "kind": "APIResourceList", "groupVersion": "batch/v1",
                "resources": [{
                    "name": "cronjobs", "singularName": "cronjob", "namespaced": true, "kind": "CronJob",
                    "verbs": ["get", "list"], "shortNames": ["cj"],
                }],
            }),
        ),
        _ => Reply::json(
            404,
            &json!({"kind": "Status", "status": "Failure", "code": 404}),
        ),
    });
    let kubeconfig = api.plain_kubeconfig();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let once = folder.path().join("once.yaml").display().to_string();
    let path = format!("{}:/usr/bin:/bin", test_tools().join("bin").display());
    let kubeconfig = kubeconfig.path().display().to_string();
    let home = folder.path().display().to_string();
    for part in ["create job", "sed -i"] {
        let command = command(part).replace("once.yaml", &once);
        let environment = [
            ("PATH", &*path),
            ("KUBECONFIG", &*kubeconfig),
            ("HOME", &*home),
        ];
        let answer = sh(&command, &environment);
        assert!(answer.code == 0, "{command}: {answer}");
    }
    let job = fs::read_to_string(&once).expect("the job");
    let (valid, output) = validate(&job);
    assert!(valid, "{output}: {job}");
    let arguments = arguments_of(&object_of(&job, "Job"));
    let of_cronjob = arguments_of(&object("CronJob"));
    assert_eq!(arguments.len(), of_cronjob.len() + 1, "{arguments:?}");
    assert!(arguments.contains(&"--dry-run".to_owned()), "{arguments:?}");
}
