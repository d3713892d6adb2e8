//! prost's decoder for the same messages: tests compare ours with it.

use prost::Message as _;

use super::port;
use super::protobuf::MAGIC;
use crate::model::{self, Phase};

#[derive(Clone, PartialEq, prost::Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes, tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TypeMeta {
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodList {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ListMeta>,
    #[prost(message, repeated, tag = "2")]
    items: Vec<Pod>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListMeta {
    #[prost(string, tag = "2")]
    resource_version: String,
    #[prost(string, tag = "3")]
    next: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pod {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<PodSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(bytes, optional, tag = "9")]
    deletion_timestamp: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "11")]
    labels: Vec<Text>,
    #[prost(message, repeated, tag = "12")]
    annotations: Vec<Text>,
}

/// An entry of a map, or anything with one or two texts.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSpec {
    #[prost(message, repeated, tag = "2")]
    containers: Vec<Container>,
    #[prost(bool, tag = "11")]
    host_network: bool,
    #[prost(message, repeated, tag = "20")]
    init_containers: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(message, repeated, tag = "6")]
    ports: Vec<Port>,
    #[prost(string, tag = "24")]
    restart_policy: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Port {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "3")]
    number: i32,
    #[prost(string, tag = "4")]
    protocol: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodStatus {
    #[prost(string, tag = "1")]
    phase: String,
    #[prost(message, repeated, tag = "2")]
    conditions: Vec<Text>,
    #[prost(string, tag = "6")]
    pod_ip: String,
    #[prost(message, repeated, tag = "12")]
    pod_ips: Vec<Ip>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ip {
    #[prost(string, tag = "1")]
    ip: String,
}

/// The resourceVersion, the next page's token and the pods of a page, as prost decodes them.
pub(super) fn page(body: &[u8]) -> Option<(String, String, Vec<model::Pod<'static>>)> {
    let Unknown { type_meta, raw } = Unknown::decode(body.strip_prefix(MAGIC)?).ok()?;
    let PodList { metadata, items } = PodList::decode(&*raw).ok()?;
    let metadata = metadata.unwrap_or_default();
    (type_meta.unwrap_or_default().kind == "PodList").then(|| {
        let pods = items.into_iter().map(pod).collect();
        (metadata.resource_version, metadata.next, pods)
    })
}

fn pod(pod: Pod) -> model::Pod<'static> {
    let meta = pod.metadata.unwrap_or_default();
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let texts = |texts: Vec<Text>| {
        texts
            .into_iter()
            .map(|text| (text.name, text.text))
            .collect()
    };
    let sidecars = spec.init_containers.into_iter();
    let sidecars = sidecars.filter(|container| container.restart_policy == "Always");
    let containers = spec
        .containers
        .into_iter()
        .map(|container| (container, false));
    let containers = containers.chain(sidecars.map(|container| (container, true)));
    let ports = containers.flat_map(|(container, sidecar)| {
        let ports = container.ports.into_iter();
        ports
            .filter_map(move |own| port(own.name.into(), own.number.into(), &own.protocol, sidecar))
    });
    let given = status.pod_ips.iter().map(|ip| &*ip.ip);
    let given = given.filter(|ip| !ip.is_empty()).collect::<Vec<_>>();
    let parsed = given.iter().filter_map(|ip| ip.parse().ok());
    let mut ips = parsed.collect::<Vec<std::net::IpAddr>>();
    let mut unreadable_ip = ips.len() < given.len();
    if ips.is_empty() && !status.pod_ip.is_empty() {
        match status.pod_ip.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => unreadable_ip = true,
        }
    }
    let ready = |condition: &Text| condition.name == "Ready" && condition.text == "True";
    model::Pod {
        namespace: meta.namespace.into(),
        name: meta.name.into(),
        labels: texts(meta.labels),
        annotations: texts(meta.annotations),
        phase: Phase::parse(&status.phase),
        ready: status.conditions.iter().any(ready),
        terminating: meta.deletion_timestamp.is_some(),
        host_network: spec.host_network,
        ips,
        unreadable_ip,
        ports: ports.collect(),
    }
}

/// A page of one pod with these names.
pub(super) fn list_of(namespace: &str, name: &str) -> Vec<u8> {
    let metadata = ObjectMeta {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        ..ObjectMeta::default()
    };
    let pod = Pod {
        metadata: Some(metadata),
        ..Pod::default()
    };
    let list = PodList {
        metadata: Some(ListMeta {
            resource_version: "1".to_owned(),
            next: String::new(),
        }),
        items: vec![pod],
    };
    let unknown = Unknown {
        type_meta: Some(TypeMeta {
            kind: "PodList".to_owned(),
        }),
        raw: list.encode_to_vec(),
    };
    [MAGIC, &unknown.encode_to_vec()].concat()
}
