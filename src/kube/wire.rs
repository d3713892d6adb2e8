//! Pods as the API sends them, in JSON and in protobuf: just the fields that are needed, one
//! declaration for both. What is not whole is an error, never a shorter list.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context as _, anyhow, bail};
use prost::Message as _;
use prost::bytes::Bytes;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::model;

/// What a protobuf answer begins with.
const MAGIC: &[u8] = b"k8s\0";

/// `runtime.Unknown`: the envelope of every protobuf answer. Its length tells a cut list.
#[derive(Clone, PartialEq, prost::Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "bytes", tag = "2")]
    raw: Bytes,
    #[prost(string, tag = "3")]
    content_encoding: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

/// A `PodList`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
pub(super) struct PodList {
    #[prost(message, optional, tag = "1")]
    #[serde(default)]
    metadata: Option<ListMeta>,
    #[prost(message, repeated, tag = "2")]
    #[serde(default, deserialize_with = "or_default")]
    items: Vec<Pod>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMeta {
    #[prost(string, tag = "2")]
    pub(super) resource_version: String,
    #[prost(string, tag = "3")]
    pub(super) r#continue: String,
}

/// A `Pod`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
pub(super) struct Pod {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<PodSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(message, optional, tag = "9")]
    #[serde(deserialize_with = "is_set")]
    deletion_timestamp: Option<Time>,
    #[prost(map = "string, string", tag = "11")]
    #[serde(deserialize_with = "or_default")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "12")]
    #[serde(deserialize_with = "or_default")]
    annotations: HashMap<String, String>,
}

/// A point in time. Only whether there is one matters.
#[derive(Clone, PartialEq, prost::Message)]
struct Time {}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[prost(bool, tag = "11")]
    host_network: bool,
    #[prost(message, repeated, tag = "20")]
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "or_default")]
    ports: Vec<ContainerPort>,
    #[prost(string, tag = "24")]
    restart_policy: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct ContainerPort {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "3")]
    #[serde(rename = "containerPort")]
    number: i32,
    #[prost(string, tag = "4")]
    protocol: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    #[prost(string, tag = "1")]
    phase: String,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[prost(string, tag = "6")]
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[prost(message, repeated, tag = "12")]
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct Condition {
    #[prost(string, tag = "1")]
    r#type: String,
    #[prost(string, tag = "2")]
    status: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

/// `Status`: what the API says when it says no.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct Status {
    #[prost(string, tag = "3")]
    message: String,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

fn is_set<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Time>, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(input)?.map(|_| Time {}))
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    /// All pages of one list have the same.
    pub(super) resource_version: String,
    /// Asks for the next page; empty on the last.
    pub(super) next: String,
    pods: Vec<Pod>,
}

impl Page {
    /// Its pods, converted.
    pub(super) fn pods(self) -> impl Iterator<Item = anyhow::Result<model::Pod>> {
        self.pods.into_iter().map(Pod::convert)
    }

    fn new(list: PodList) -> anyhow::Result<Self> {
        let ListMeta {
            resource_version,
            r#continue,
        } = list.metadata.unwrap_or_default();
        if resource_version.is_empty() {
            bail!("a pod list without a resourceVersion: it may not be whole");
        }
        Ok(Self {
            resource_version,
            next: r#continue,
            pods: list.items,
        })
    }
}

/// Decodes a page in JSON.
pub(super) fn json(body: &[u8]) -> anyhow::Result<Page> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(default)]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        kind: String,
        #[serde(default)]
        metadata: Option<ListMeta>,
        #[serde(deserialize_with = "or_default")]
        items: Vec<Pod>,
    }
    match serde_json::from_slice(body) {
        Ok(Whole {
            kind,
            metadata,
            items,
        }) if kind == "PodList" => Page::new(PodList { metadata, items }),
        Ok(Whole { kind, .. }) => bail!("wanted a PodList, got {}", named(&kind)),
        Err(error) => match serde_json::from_slice::<Typed>(body) {
            Ok(Typed { kind }) if kind != "PodList" => {
                bail!("wanted a PodList, got {}", named(&kind))
            }
            _ => Err(anyhow!("a pod list that is not whole or not JSON: {error}")),
        },
    }
}

/// Decodes a page in protobuf.
pub(super) fn protobuf(body: Vec<u8>) -> anyhow::Result<Page> {
    let (kind, raw) = envelope(Bytes::from(body))?;
    if kind != "PodList" {
        bail!("wanted a PodList, got {}", named(&kind));
    }
    if raw.is_empty() {
        bail!("an empty pod list message: it is not whole");
    }
    Page::new(PodList::decode(raw).context("a pod list that is not whole")?)
}

fn named(kind: &str) -> String {
    if kind.is_empty() {
        "something without a kind".to_owned()
    } else {
        format!("a `{kind}`")
    }
}

fn envelope(mut body: Bytes) -> anyhow::Result<(String, Bytes)> {
    if !body.starts_with(MAGIC) {
        bail!("no Kubernetes protobuf message");
    }
    let body = body.split_off(MAGIC.len());
    let unknown = Unknown::decode(body).context("a message that is not whole")?;
    if !unknown.content_encoding.is_empty() {
        bail!(
            "a message in the unknown encoding `{}`",
            unknown.content_encoding
        );
    }
    let kind = unknown.type_meta.unwrap_or_default().kind;
    Ok((kind, unknown.raw))
}

/// The server's own words in the body of an answer that says no, in either encoding or plain.
pub(super) fn status_message(body: Vec<u8>) -> String {
    /// Of a body that is no `Status`, so much is shown.
    const SHOWN: usize = 300;
    let body = Bytes::from(body);
    let status = match envelope(body.clone()) {
        Ok((_, raw)) => Status::decode(raw).ok(),
        Err(_) => serde_json::from_slice::<Status>(&body).ok(),
    };
    match status {
        Some(status) if !status.message.is_empty() => status.message,
        _ => String::from_utf8_lossy(&body)
            .trim()
            .chars()
            .take(SHOWN)
            .collect(),
    }
}

/// Decodes one pod in JSON, as `kubectl` prints it.
pub(super) fn json_pod(text: &str) -> serde_json::Result<Pod> {
    serde_json::from_str(text)
}

impl Pod {
    /// Converts to what the rest of the program works with.
    pub(super) fn convert(self) -> anyhow::Result<model::Pod> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let ObjectMeta {
            name,
            namespace,
            deletion_timestamp,
            labels,
            annotations,
        } = metadata.unwrap_or_default();
        if name.is_empty() || namespace.is_empty() {
            bail!("a pod without a name or namespace");
        }
        let PodSpec {
            containers,
            host_network,
            init_containers,
        } = spec.unwrap_or_default();
        let PodStatus {
            phase,
            conditions,
            pod_ip,
            pod_ips,
        } = status.unwrap_or_default();
        let sidecars = init_containers
            .into_iter()
            .filter(|init| init.restart_policy == "Always");
        let main = containers.into_iter().map(|container| (container, false));
        let ports = main.chain(sidecars.map(|container| (container, true)));
        let ports = ports.flat_map(|(container, sidecar)| {
            container
                .ports
                .into_iter()
                .filter_map(move |port| port.convert(sidecar))
        });
        let mut ips = pod_ips
            .iter()
            .filter_map(|ip| ip.ip.parse().ok())
            .collect::<Vec<IpAddr>>();
        if ips.is_empty() {
            ips.extend(pod_ip.parse::<IpAddr>());
        }
        Ok(model::Pod {
            namespace,
            name,
            labels: labels.into_iter().collect(),
            annotations: annotations.into_iter().collect(),
            phase: model::Phase::parse(&phase),
            ready: conditions
                .iter()
                .any(|c| c.r#type == "Ready" && c.status == "True"),
            terminating: deletion_timestamp.is_some(),
            host_network,
            ips,
            ports: ports.collect(),
        })
    }
}

impl ContainerPort {
    fn convert(self, sidecar: bool) -> Option<model::ContainerPort> {
        let number = u16::try_from(self.number)
            .ok()
            .filter(|number| *number > 0)?;
        Some(model::ContainerPort {
            name: Some(self.name).filter(|name| !name.is_empty()),
            number,
            tcp: self.protocol.is_empty() || self.protocol == "TCP",
            sidecar,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn recorded(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/kube")
            .join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn pods(page: Page) -> Vec<model::Pod> {
        page.pods()
            .collect::<Result<_, _>>()
            .expect("pods with names")
    }

    #[test]
    fn both_encodings_say_the_same() {
        for (name, number) in [("page-1", 20), ("page-2", 20), ("mixed", 62)] {
            let from_json = json(&recorded(&format!("lists/{name}.json.body"))).expect(name);
            let from_protobuf =
                protobuf(recorded(&format!("lists/{name}.protobuf.body"))).expect(name);
            assert_eq!(from_json.resource_version, from_protobuf.resource_version);
            assert_eq!(from_json.next, from_protobuf.next);
            let (from_json, from_protobuf) = (pods(from_json), pods(from_protobuf));
            assert_eq!(from_json.len(), number);
            assert_eq!(from_json, from_protobuf, "{name}");
        }
    }

    #[test]
    fn the_recorded_pods_have_what_decides() {
        let pods = pods(protobuf(recorded("lists/mixed.protobuf.body")).expect("a page"));
        let count = |what: fn(&model::Pod) -> bool| pods.iter().filter(|pod| what(pod)).count();
        assert!(count(|pod| pod.ready) > 0 && count(|pod| !pod.ready) > 0);
        assert!(count(|pod| pod.terminating) > 0);
        assert!(count(|pod| pod.ips.is_empty()) > 0);
        assert!(count(|pod| pod.ports.iter().any(|port| port.sidecar)) > 0);
        assert_eq!(count(|pod| pod.ports.is_empty()), 0);
        assert_eq!(count(|pod| pod.labels.is_empty()), 0);
    }

    #[test]
    fn a_compressed_page() {
        let mut text = Vec::new();
        let packed = recorded("lists/gzip-100-pods.json.gz");
        flate2::read::GzDecoder::new(&*packed)
            .read_to_end(&mut text)
            .expect("gzip");
        assert_eq!(pods(json(&text).expect("a page")).len(), 100);
    }

    #[test]
    fn errors_say_the_same_in_both_encodings() {
        let mut twins = 0;
        for file in
            std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kube/errors"))
                .expect("errors")
        {
            let name = file
                .expect("a file")
                .file_name()
                .into_string()
                .expect("UTF-8");
            let Some(name) = name.strip_suffix(".protobuf.body") else {
                continue;
            };
            let message = |ending| status_message(recorded(&format!("errors/{name}.{ending}")));
            let (in_json, in_protobuf) = (message("body"), message("protobuf.body"));
            // Not all were recorded for the very same request: the beginning is the server's own.
            let words = |text: &str| {
                text.split(' ')
                    .take(3)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            if name != "404-unknown-path" {
                assert_eq!(words(&in_json), words(&in_protobuf), "{name}");
            }
            if ["400-bad-labelselector", "401-bad-token", "403-anonymous"].contains(&name) {
                assert_eq!(in_json, in_protobuf, "{name}");
            }
            assert!(
                !in_protobuf.is_empty() && !in_protobuf.contains('\0'),
                "{name}"
            );
            twins += 1;
        }
        assert_eq!(twins, 7);
    }

    #[test]
    fn an_empty_list_is_whole_only_with_a_version() {
        let empty = json(&recorded("lists/200-unknown-namespace.body")).expect("a list");
        assert_eq!(pods(empty), []);
        let empty = protobuf(recorded("lists/200-unknown-namespace.protobuf.body"));
        assert_eq!(pods(empty.expect("a list")), []);
        assert!(json(br#"{"kind":"PodList","metadata":{},"items":[]}"#).is_err());
        assert!(json(br#"{"kind":"Status","metadata":{"resourceVersion":"1"}}"#).is_err());
        assert!(json(br#"{"kind":"PodList","metadata":{"resourceVersion":"1"}}"#).is_err());
        assert!(json(b"<html>").is_err());
        assert!(protobuf(Vec::new()).is_err());
        assert!(protobuf(b"k8s\0".to_vec()).is_err());
        let unnamed = br#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[{}]}"#;
        assert!(
            json(unnamed)
                .expect("a page")
                .pods()
                .any(|pod| pod.is_err())
        );
    }

    /// A page decoded to the end, or nothing.
    fn decoded(page: anyhow::Result<Page>) -> Option<usize> {
        page.ok()?
            .pods()
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .map(|pods| pods.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(300)
        })]

        #[test]
        fn a_page_that_is_cut_is_an_error(at in 0.0..1.0_f64) {
            for (name, decode) in [
                ("page-1.json", (|body| json(&body)) as fn(Vec<u8>) -> _),
                ("page-1.protobuf", protobuf),
            ] {
                let mut body = recorded(&format!("lists/{name}.body"));
                // The JSON page ends with a line end that is not part of it.
                let whole = body.trim_ascii_end().len();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                    reason = "a place somewhere in a page")]
                body.truncate((at * whole as f64) as usize);
                prop_assert!(decode(body).is_err(), "{name}");
            }
        }

        /// A changed byte may still be a page: another letter in a name, say. It must not be a page with
        /// fewer pods. In protobuf a changed tag can turn a pod into an unknown field, which a decoder
        /// must skip: no decoder can tell that. TLS and TCP see to it that bytes are not changed; what
        /// happens on the way is cuts. So for protobuf only the absence of a panic is asked for.
        #[test]
        fn a_page_that_is_changed_does_not_lose_pods(
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let change = |mut body: Vec<u8>| {
                for (place, byte) in &places {
                    let place = place.index(body.len());
                    body[place] = *byte;
                }
                body
            };
            let body = change(recorded("lists/page-1.json.body"));
            if let Some(number) = decoded(json(&body)) {
                prop_assert_eq!(number, 20);
            }
            let _ = decoded(protobuf(change(recorded("lists/page-1.protobuf.body"))));
        }

        #[test]
        fn rubbish_is_an_error(body in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(json(&body).is_err());
            let mut enveloped = MAGIC.to_vec();
            enveloped.extend(&body);
            let _ = decoded(protobuf(enveloped));
            prop_assert!(protobuf(body).is_err());
        }
    }
}
