//! The v2 store of an etcd server.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::{Value, json};

use super::{BASE64, Etcd, PATIENCE, ROOT_PASSWORD, agent, answered};

impl Etcd {
    /// Enables authentication in the v2 API, with a user who may read and write the keys of this pattern. The helpers
    /// for v2 do not work afterwards.
    pub fn enable_auth_v2(&self, name: &str, password: &str, pattern: &str) {
        let send = |path: &str, body: &Value| {
            let url = format!("http://127.0.0.1:{}/v2/auth/{path}", self.ports.plain);
            let answer = agent(PATIENCE).put(url).send(body.to_string());
            let status = answer.expect("etcd answers").status();
            assert!(status.is_success(), "{path}: {status}");
        };
        let may = json!({"kv": {"read": [pattern], "write": [pattern]}});
        send(
            "users/root",
            &json!({"user": "root", "password": ROOT_PASSWORD}),
        );
        send("roles/role", &json!({"role": "role", "permissions": may}));
        let user = json!({"user": name, "password": password, "roles": ["role"]});
        send(&format!("users/{name}"), &user);
        send("enable", &json!({}));
        let root = BASE64.encode(format!("root:{ROOT_PASSWORD}"));
        let url = format!("http://127.0.0.1:{}/v2/auth/roles/guest", self.ports.plain);
        let all = json!({"kv": {"read": ["/*"], "write": ["/*"]}});
        let body = json!({"role": "guest", "revoke": all});
        let request = agent(PATIENCE).put(url);
        let request = request.header("authorization", format!("Basic {root}"));
        answered(request.send(body.to_string()));
    }

    /// Sets a key (v2), or creates an empty directory if the value is `None`.
    pub fn put_v2(&self, key: &str, value: Option<&str>) {
        let body = match value {
            Some(value) => vec![("value", value)],
            None => vec![("dir", "true")],
        };
        answered(agent(PATIENCE).put(self.v2(key)).send_form(body));
    }

    /// Deletes an existing key or directory with all its keys (v2).
    pub fn remove_v2(&self, key: &str) {
        let url = format!("{}?recursive=true", self.v2(key));
        answered(agent(PATIENCE).delete(url).call());
    }

    /// Reads a key (v2).
    pub fn get_v2(&self, key: &str) -> Option<String> {
        let answer = agent(PATIENCE).get(self.v2(key)).call();
        match answer {
            Ok(response) if response.status() == 404 => None,
            answer => Some(answered(answer)["node"]["value"].as_str()?.to_owned()),
        }
    }

    /// All keys below a directory (v2), as the server spells them; empty directories end with `/`.
    pub fn below_v2(&self, directory: &str) -> BTreeMap<String, String> {
        let url = format!("{}?recursive=true&quorum=true", self.v2(directory));
        let answer = agent(PATIENCE).get(url).call();
        let mut found = BTreeMap::new();
        if !matches!(&answer, Ok(response) if response.status() == 404) {
            leaves(&answered(answer)["node"], &mut found);
        }
        found
    }

    /// The index of the v2 store, which grows with each write.
    pub fn index_v2(&self) -> u64 {
        let answer = agent(PATIENCE)
            .get(self.v2("/"))
            .call()
            .expect("it answers");
        let index = answer.headers().get("X-Etcd-Index").expect("an index");
        index.to_str().expect("text").parse().expect("a number")
    }

    /// The action and the key of the event with this index below a directory (v2).
    pub fn event_v2(&self, directory: &str, index: u64) -> (String, String) {
        let query = format!("wait=true&recursive=true&waitIndex={index}");
        let url = format!("{}?{query}", self.v2(directory));
        let event = answered(agent(PATIENCE).get(url).call());
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&event["action"]), text(&event["node"]["key"]))
    }

    fn v2(&self, key: &str) -> String {
        let key = key.trim_start_matches('/');
        format!("http://127.0.0.1:{}/v2/keys/{key}", self.ports.plain)
    }
}

/// Collects the keys and the empty directories below a node.
fn leaves(node: &Value, found: &mut BTreeMap<String, String>) {
    let key = node["key"].as_str().unwrap_or_default();
    match node["nodes"].as_array() {
        Some(nodes) if !nodes.is_empty() => nodes.iter().for_each(|node| leaves(node, found)),
        _ if node["dir"] == true => {
            found.insert(format!("{key}/"), String::new());
        }
        _ => {
            let value = node["value"].as_str().unwrap_or_default();
            found.insert(key.to_owned(), value.to_owned());
        }
    }
}
