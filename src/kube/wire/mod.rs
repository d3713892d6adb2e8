//! Pods as the API sends them, in JSON and in protobuf: just the fields that are needed. What is not
//! whole is an error, never a shorter list.

pub(super) mod protobuf;
#[cfg(test)]
mod reference;

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;

use anyhow::{anyhow, bail};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::model::{self, Texts};
use crate::text::{escaped, shortened};
use protobuf::{Fields, MAGIC, NotWhole};

/// What a page says beside its pods.
#[derive(Debug)]
pub(super) struct Page {
    /// All pages of one list have the same.
    pub(super) resource_version: String,
    /// Asks for the next page; empty on the last.
    pub(super) next: String,
}

impl Page {
    pub(super) fn new(meta: ListMeta) -> anyhow::Result<Self> {
        let ListMeta {
            resource_version,
            r#continue,
        } = meta;
        if resource_version.is_empty() {
            bail!("a pod list without a resourceVersion: it may not be whole");
        }
        Ok(Self {
            resource_version,
            next: r#continue,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    pub(super) r#continue: String,
}

/// A `Pod`.
#[derive(Deserialize)]
pub(super) struct Pod<'j> {
    #[serde(borrow)]
    metadata: Option<ObjectMeta<'j>>,
    #[serde(borrow)]
    spec: Option<PodSpec<'j>>,
    #[serde(borrow)]
    status: Option<PodStatus<'j>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectMeta<'j> {
    #[serde(borrow)]
    name: Cow<'j, str>,
    #[serde(borrow)]
    namespace: Cow<'j, str>,
    #[serde(deserialize_with = "is_set")]
    deletion_timestamp: bool,
    #[serde(borrow, deserialize_with = "or_default")]
    labels: Labels<'j>,
    #[serde(borrow, deserialize_with = "or_default")]
    annotations: Labels<'j>,
}

/// Adds an address. `false` if there is one that cannot be read.
fn add_ip(ips: &mut Vec<IpAddr>, text: &str) -> bool {
    match text.parse() {
        Ok(ip) => ips.push(ip),
        Err(_) => return text.is_empty(),
    }
    true
}

/// Labels or annotations.
#[derive(Default)]
struct Labels<'j>(Texts<'j>);

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec<'j> {
    #[serde(borrow, deserialize_with = "or_default")]
    containers: Vec<Container<'j>>,
    host_network: bool,
    #[serde(borrow, deserialize_with = "or_default")]
    init_containers: Vec<Container<'j>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container<'j> {
    #[serde(borrow, deserialize_with = "or_default")]
    ports: Vec<ContainerPort<'j>>,
    #[serde(borrow)]
    restart_policy: Cow<'j, str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerPort<'j> {
    #[serde(borrow)]
    name: Cow<'j, str>,
    #[serde(rename = "containerPort")]
    number: i32,
    #[serde(borrow)]
    protocol: Cow<'j, str>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus<'j> {
    #[serde(borrow)]
    phase: Cow<'j, str>,
    #[serde(borrow, deserialize_with = "or_default")]
    conditions: Vec<Condition<'j>>,
    #[serde(borrow, rename = "podIP")]
    pod_ip: Cow<'j, str>,
    #[serde(borrow, rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodIp<'j>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition<'j> {
    #[serde(borrow)]
    r#type: Cow<'j, str>,
    #[serde(borrow)]
    status: Cow<'j, str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodIp<'j> {
    #[serde(borrow)]
    ip: Cow<'j, str>,
}

impl<'de> Deserialize<'de> for Labels<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'t>(#[serde(borrow)] Cow<'t, str>);
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Labels<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels<'de>, A::Error> {
                let mut labels = Labels::default();
                while let Some((Text(key), Text(value))) = map.next_entry()? {
                    labels.0.insert(key, value);
                }
                Ok(labels)
            }
        }
        input.deserialize_map(Reader)
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

fn is_set<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(input)?.is_some())
}

/// What is done with each pod of a page.
pub(super) type Each<'e> = dyn FnMut(model::Pod<'_>) -> anyhow::Result<()> + 'e;

/// Reads and decodes a page by way of a buffer, whatever that holds, and hands over each pod.
pub(super) type Decode = fn(&mut dyn Read, &mut Vec<u8>, &mut Each) -> anyhow::Result<Page>;

/// Reads and decodes a page in JSON, and hands over each pod.
pub(super) fn json(
    input: &mut dyn Read,
    body: &mut Vec<u8>,
    each: &mut Each,
) -> anyhow::Result<Page> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(default)]
        kind: String,
    }
    body.clear();
    input.read_to_end(body)?;
    let mut list = List {
        each,
        refused: None,
    };
    let mut input = serde_json::Deserializer::from_slice(body);
    let page = list.deserialize(&mut input);
    let page = page.and_then(|page| input.end().map(|()| page));
    let error = match page {
        Ok((kind, metadata)) if kind == "PodList" => {
            return Page::new(metadata.unwrap_or_default());
        }
        Ok((kind, _)) => bail!("wanted a PodList, got {}", named(&kind)),
        Err(error) => error,
    };
    match (serde_json::from_slice::<Typed>(body), list.refused) {
        (Ok(Typed { kind }), _) if kind != "PodList" => {
            bail!("wanted a PodList, got {}", named(&kind))
        }
        (_, Some(refused)) => Err(refused),
        (_, None) => Err(anyhow!("a pod list that is not whole or not JSON: {error}")),
    }
}

/// Decodes a list: each pod is handed over at once, and need not be kept beside all others of its page.
struct List<'l, 'e> {
    each: &'l mut Each<'e>,
    /// Why a pod was not taken.
    refused: Option<anyhow::Error>,
}

impl<'de> DeserializeSeed<'de> for &mut List<'_, '_> {
    /// The kind, and what the list says of itself.
    type Value = (String, Option<ListMeta>);

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut List<'_, '_> {
    type Value = (String, Option<ListMeta>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Field {
            Kind,
            Metadata,
            Items,
            #[serde(other)]
            Other,
        }
        let (mut kind, mut metadata, mut items) = (None, None, None);
        while let Some(field) = map.next_key()? {
            let twice = match field {
                Field::Kind => kind.replace(map.next_value()?).is_some(),
                Field::Metadata => metadata.replace(map.next_value()?).is_some(),
                Field::Items => items.replace(map.next_value_seed(Items(self))?).is_some(),
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(A::Error::custom("a field that is there twice"));
            }
        }
        match items {
            Some(()) => Ok((kind.unwrap_or_default(), metadata.flatten())),
            None => Err(A::Error::missing_field("items")),
        }
    }
}

/// The pods of a list, or `null`.
struct Items<'i, 'l, 'e>(&'i mut List<'l, 'e>);

impl<'de> DeserializeSeed<'de> for Items<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pods")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pods: A) -> Result<(), A::Error> {
        while let Some(pod) = pods.next_element::<Pod>()? {
            if let Err(error) = pod.convert().and_then(&mut *self.0.each) {
                self.0.refused = Some(error);
                return Err(A::Error::custom("a pod that is not taken"));
            }
        }
        Ok(())
    }
}

pub(super) fn named(kind: &str) -> String {
    if kind.is_empty() {
        "something without a kind".to_owned()
    } else {
        format!("a `{kind}`")
    }
}

/// The server's own words in the body of an answer that says no, in either encoding or plain.
pub(super) fn status_message(body: &[u8]) -> String {
    /// So much of it is shown, in characters.
    const SHOWN: usize = 300;
    /// `Status`: what the API says when it says no.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        message: String,
    }
    let message = match body.strip_prefix(MAGIC) {
        Some(envelope) => protobuf_status(envelope).ok(),
        None => serde_json::from_slice::<Status>(body)
            .ok()
            .map(|status| status.message),
    };
    let message = match message {
        Some(message) if !message.is_empty() => message,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    shortened(message.trim(), SHOWN).into_owned()
}

/// The message of a `Status` in its envelope.
fn protobuf_status(envelope: &[u8]) -> Result<String, NotWhole> {
    let mut message = "";
    let mut envelope = Fields(envelope);
    while let Some((tag, value)) = envelope.next()? {
        if tag == 2 {
            let mut status = Fields(value.bytes()?);
            while let Some((tag, value)) = status.next()? {
                if tag == 3 {
                    message = value.text()?;
                }
            }
        }
    }
    Ok(message.to_owned())
}

/// Decodes one pod in JSON, as `kubectl` prints it.
pub(super) fn json_pod(text: &str) -> serde_json::Result<Pod<'_>> {
    serde_json::from_str(text)
}

impl<'j> Pod<'j> {
    /// Converts to what the rest of the program works with.
    pub(super) fn convert(self) -> anyhow::Result<model::Pod<'j>> {
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
        check_names(&namespace, &name)?;
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
            let ports = container.ports.into_iter();
            ports.filter_map(move |own| {
                port(own.name, i64::from(own.number), &own.protocol, sidecar)
            })
        });
        let mut ips = Vec::<IpAddr>::new();
        let mut unreadable_ip = false;
        for ip in &pod_ips {
            unreadable_ip |= !add_ip(&mut ips, &ip.ip);
        }
        if ips.is_empty() {
            unreadable_ip |= !add_ip(&mut ips, &pod_ip);
        }
        Ok(model::Pod {
            namespace,
            name,
            labels: labels.0,
            annotations: annotations.0,
            phase: model::Phase::parse(&phase),
            ready: conditions
                .iter()
                .any(|c| c.r#type == "Ready" && c.status == "True"),
            terminating: deletion_timestamp,
            host_network,
            ips,
            unreadable_ip,
            ports: ports.collect(),
        })
    }
}

/// Checks a pod's names. Kubernetes has no others, and they stand in keys: one with a slash must not pass.
pub(super) fn check_names(namespace: &str, name: &str) -> anyhow::Result<()> {
    if name.is_empty() || namespace.is_empty() {
        bail!("a pod without a name or namespace");
    }
    let label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let whole = namespace.len() <= 63 && namespace.bytes().all(label);
    if !whole || name.len() > 253 || !name.bytes().all(|c| label(c) || c == b'.') {
        let text = format!("{namespace}/{name}");
        let text = shortened(&text, 80);
        bail!("a pod named `{}`: there is no such name", escaped(&text));
    }
    Ok(())
}

/// A port that a container declares; `None` if its number is none.
pub(super) fn port<'p>(
    name: Cow<'p, str>,
    number: i64,
    protocol: &str,
    sidecar: bool,
) -> Option<model::ContainerPort<'p>> {
    let number = u16::try_from(number).ok().filter(|number| *number > 0)?;
    Some(model::ContainerPort {
        name: Some(name).filter(|name| !name.is_empty()),
        number,
        tcp: protocol.is_empty() || protocol == "TCP",
        sidecar,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::Path;

    use proptest::prelude::*;

    use super::protobuf::page as protobuf;
    use super::*;

    fn recorded(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/kube")
            .join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// A page and its pods, or nothing of it.
    fn decoded(
        decode: Decode,
        mut body: &[u8],
    ) -> anyhow::Result<(Page, Vec<model::Pod<'static>>)> {
        let mut pods = Vec::new();
        let page = decode(&mut body, &mut vec![b'{'; 100_000], &mut |pod| {
            pods.push(pod.into_owned());
            Ok(())
        })?;
        Ok((page, pods))
    }

    fn pods(decode: Decode, body: &[u8]) -> anyhow::Result<Vec<model::Pod<'static>>> {
        decoded(decode, body).map(|(_, pods)| pods)
    }

    #[test]
    fn both_encodings_say_the_same() {
        for (name, number) in [("page-1", 20), ("page-2", 20), ("mixed", 62)] {
            let (json, from_json) =
                decoded(json, &recorded(&format!("lists/{name}.json.body"))).expect(name);
            let (protobuf, from_protobuf) =
                decoded(protobuf, &recorded(&format!("lists/{name}.protobuf.body"))).expect(name);
            assert_eq!(json.resource_version, protobuf.resource_version);
            assert_eq!(json.next, protobuf.next);
            assert_eq!(from_json.len(), number);
            assert_eq!(from_json, from_protobuf, "{name}");
        }
    }

    #[test]
    fn the_recorded_pods_have_what_decides() {
        let pods = pods(protobuf, &recorded("lists/mixed.protobuf.body")).expect("a page");
        let count = |what: fn(&model::Pod) -> bool| pods.iter().filter(|pod| what(pod)).count();
        assert!(count(|pod| pod.ready) > 0 && count(|pod| !pod.ready) > 0);
        assert!(count(|pod| pod.terminating) > 0);
        assert!(count(|pod| pod.ips.is_empty()) > 0);
        assert!(count(|pod| pod.ports.iter().any(|port| port.sidecar)) > 0);
        assert_eq!(count(|pod| pod.ports.is_empty()), 0);
        assert_eq!(count(|pod| pod.labels == Texts::default()), 0);
    }

    #[test]
    fn a_compressed_page() {
        let mut text = Vec::new();
        let packed = recorded("lists/gzip-100-pods.json.gz");
        flate2::read::GzDecoder::new(&*packed)
            .read_to_end(&mut text)
            .expect("gzip");
        assert_eq!(pods(json, &text).expect("a page").len(), 100);
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
            let message = |ending| status_message(&recorded(&format!("errors/{name}.{ending}")));
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
        let empty = pods(json, &recorded("lists/200-unknown-namespace.body"));
        assert_eq!(empty.expect("a list"), []);
        let empty = pods(
            protobuf,
            &recorded("lists/200-unknown-namespace.protobuf.body"),
        );
        assert_eq!(empty.expect("a list"), []);
        for bad in [
            r#"{"kind":"PodList","metadata":{},"items":[]}"#,
            r#"{"kind":"Status","metadata":{"resourceVersion":"1"}}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"}}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[{}]}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[],"items":[]}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}{}"#,
            "<html>",
        ] {
            assert!(pods(json, bad.as_bytes()).is_err(), "{bad}");
        }
        // Go writes an empty list so.
        let null = r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":null}"#;
        assert_eq!(pods(json, null.as_bytes()).expect("a list"), []);
        // What it is is said, wherever that stands, and not what is wrong with a pod of it.
        for other in [
            r#"{"kind":"NodeList","metadata":{"resourceVersion":"1"},"items":[{}]}"#,
            r#"{"items":[{"metadata":{"name":"a"}}],"kind":"NodeList"}"#,
        ] {
            let error = pods(json, other.as_bytes()).expect_err("not pods");
            assert_eq!(error.to_string(), "wanted a PodList, got a `NodeList`");
        }
        assert!(pods(protobuf, b"").is_err());
        assert!(pods(protobuf, MAGIC).is_err());
        // A list longer than any body: kind, then a length of 2^64 - 1.
        let mut endless = MAGIC.to_vec();
        endless.extend(b"\x0a\x09\x12\x07PodList\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        assert!(pods(protobuf, &endless).is_err());
    }

    #[test]
    fn a_name_cannot_add_a_path_segment() {
        let pod = |namespace: &str, name: &str| {
            let meta = serde_json::json!({"namespace": namespace, "name": name});
            let list = serde_json::json!({
                "kind": "PodList",
                "metadata": {"resourceVersion": "1"},
                "items": [{"metadata": meta}],
            });
            let in_json = pods(json, list.to_string().as_bytes()).map_err(|e| e.to_string());
            let in_protobuf = pods(protobuf, &reference::list_of(namespace, name));
            let in_protobuf = in_protobuf.map_err(|e| e.to_string());
            assert_eq!(in_json, in_protobuf);
            in_json.map(|pods| pods.len())
        };
        assert_eq!(pod("shop-1", "web-7d9f.x"), Ok(1));
        let long = "a".repeat(254);
        for (namespace, name) in [
            ("a/b", "web"),
            ("..", "web"),
            ("a.b", "web"),
            ("Shop", "web"),
            ("shop", "a/b"),
            ("shop", "a\u{1b}"),
            ("shop", &long),
            (&long, "web"),
        ] {
            let error = pod(namespace, name).expect_err(name);
            assert!(error.len() < 200 && !error.contains('\u{1b}'), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(300)
        })]

        #[test]
        fn a_page_that_is_cut_is_an_error(at in 0.0..1.0_f64) {
            for (name, decode) in [("page-1.json", json as Decode), ("page-1.protobuf", protobuf)] {
                let mut body = recorded(&format!("lists/{name}.body"));
                // The JSON page ends with a line end that is not part of it.
                // The envelope ends with two empty fields, and is whole without them.
                let whole = body.trim_ascii_end();
                let whole = whole.strip_suffix(b"\x1a\0\x22\0").unwrap_or(whole).len();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                    reason = "a place somewhere in a page")]
                body.truncate((at * whole as f64) as usize);
                prop_assert!(pods(decode, &body).is_err(), "{name}");
            }
        }

        /// A library's decoder is the judge of ours: what ours takes is what prost reads, pod for pod.
        #[test]
        fn what_is_decoded_is_what_prost_decodes(
            page in prop::sample::select(vec!["page-1", "page-2", "mixed"]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 0..4),
        ) {
            let mut body = recorded(&format!("lists/{page}.protobuf.body"));
            for (place, byte, what) in changes {
                let place = place.index(body.len());
                match what {
                    0 => body[place] = byte,
                    1 => body.insert(place, byte),
                    _ => drop(body.remove(place)),
                }
            }
            if let Ok((page, pods)) = decoded(protobuf, &body) {
                let (version, next, expected) = reference::page(&body).expect("prost reads it too");
                prop_assert_eq!((page.resource_version, page.next), (version, next));
                prop_assert_eq!(pods, expected);
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
            if let Ok(pods) = pods(json, &body) {
                prop_assert_eq!(pods.len(), 20);
            }
            let _ = pods(protobuf, &change(recorded("lists/page-1.protobuf.body")));
        }

        #[test]
        fn rubbish_is_an_error(body in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(pods(json, &body).is_err());
            let mut enveloped = MAGIC.to_vec();
            enveloped.extend(&body);
            let _ = pods(protobuf, &enveloped);
            prop_assert!(pods(protobuf, &body).is_err());
        }
    }
}
