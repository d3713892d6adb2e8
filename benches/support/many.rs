//! Store files and pods files with many of one thing, for costs that must grow linearly.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

const BACKENDS: &str = "/vulcand/backends";

/// Costs that must grow linearly: the goal's name, the thing that is counted, and the smaller number of it;
/// the larger one is ten times that.
pub const CASES: [(&str, &str, usize); 4] = [
    (
        "instructions of 100,000 foreign entries, to 10,000",
        "foreign entries",
        10_000,
    ),
    (
        "instructions of 20,000 undefined backends, to 2,000",
        "undefined backends",
        2_000,
    ),
    (
        "instructions of 20,000 held changes, to 2,000",
        "held changes",
        2_000,
    ),
    (
        "instructions of 10,000 findings, to 1,000",
        "findings",
        1_000,
    ),
];

/// Writes the files `store` and `pods` with `number` of a thing to `folder`.
pub fn write(thing: &str, number: usize, folder: &Path) {
    let mut store = Map::new();
    let mut put = |key: String, value: Value| {
        store.insert(format!("{BACKENDS}/{key}"), value.to_string().into());
    };
    let mut pods = vec![pod(0)];
    put("site/backend".to_owned(), json!({"Type": "http"}));
    put("shop/backend".to_owned(), json!({"Type": "http"}));
    for n in 1..=number {
        let url = format!("http://{}:8080", ip(n));
        match thing {
            "foreign entries" => put(format!("shop/servers/{n:06}"), json!({ "URL": url })),
            "undefined backends" => put(format!("u{n:06}/servers/a"), json!({ "URL": url })),
            "findings" => put(format!("shop/servers/{n:06}"), Value::Null),
            "held changes" => {
                let name = format!("shop/web-{n}");
                let value = json!({"URL": url, "Owner": "bench", "Scope": "file", "Pod": name});
                put(format!("shop/servers/{}", ip(n)), value);
                pods.push(pod(n));
            }
            other => panic!("{other}"),
        }
    }
    let list = json!({
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "7"},
        "items": pods,
    });
    fs::write(folder.join("store"), Value::Object(store).to_string()).expect("it is written");
    fs::write(folder.join("pods"), list.to_string()).expect("it is written");
}

fn ip(number: usize) -> String {
    let [_, a, b, c] = u32::try_from(number).expect("few").to_be_bytes();
    format!("10.{a}.{b}.{c}")
}

/// A Ready pod of the backend `site`.
fn pod(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("web-{number}"), "namespace": "shop", "labels": {"app": "site"}},
        "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {
            "phase": "Running",
            "podIP": ip(number),
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}
