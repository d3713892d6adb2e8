//! Decoders for pod lists in JSON and protobuf: only the fields that are needed. Incomplete input is an
//! error, never a shorter list.

pub(super) mod json;
pub(super) mod protobuf;
#[cfg(test)]
mod reference;

use std::borrow::Cow;
use std::io::Read;
use std::net::IpAddr;

use anyhow::bail;
use serde::Deserialize;

use crate::model::{self, Reads};
use crate::text::{escaped, shortened};
use protobuf::{Fields, MAGIC, Malformed};

/// The metadata of a page.
#[derive(Debug)]
pub(super) struct Page {
    /// The same in all pages of one list.
    pub(super) resource_version: String,
    /// The continue token; empty on the last page.
    pub(super) next: String,
}

impl Page {
    pub(super) fn new(meta: ListMeta) -> anyhow::Result<Self> {
        let ListMeta {
            resource_version,
            r#continue,
        } = meta;
        if resource_version.is_empty() {
            bail!("a pod list without a resourceVersion: it may be incomplete");
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

/// Parses and adds an address. `false` if it is not valid; an empty one counts as absent.
fn add_ip(ips: &mut Vec<IpAddr>, text: &str) -> bool {
    match text.parse() {
        Ok(ip) => ips.push(ip),
        Err(_) => return text.is_empty(),
    }
    true
}

/// Called with each pod of a page.
pub(super) type Each<'e> = dyn FnMut(model::Pod<'_>) -> anyhow::Result<()> + 'e;

/// Reads and decodes a page, and passes each pod on. The buffer is scratch space.
pub(super) type Decode = fn(&mut dyn Read, &mut Vec<u8>, &Reads, &mut Each) -> anyhow::Result<Page>;

pub(super) fn kind_text(kind: &str) -> String {
    if kind.is_empty() {
        "something without a kind".to_owned()
    } else {
        format!("a `{kind}`")
    }
}

/// The message in the body of an error answer: that of a `Status` in JSON or protobuf, or plain text.
pub(super) fn status_message(body: &[u8]) -> String {
    /// The most that is shown, in characters.
    const SHOWN: usize = 300;
    /// `Status`, the API's error object.
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
fn protobuf_status(envelope: &[u8]) -> Result<String, Malformed> {
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

/// Checks that namespace and name are valid in Kubernetes: they become parts of keys, so a slash must not
/// pass.
pub(super) fn check_names(namespace: &str, name: &str) -> anyhow::Result<()> {
    if name.is_empty() || namespace.is_empty() {
        bail!("a pod without a name or namespace");
    }
    let label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let is_valid = namespace.len() <= 63 && namespace.bytes().all(label);
    if !is_valid || name.len() > 253 || !name.bytes().all(|c| label(c) || c == b'.') {
        let text = format!("{namespace}/{name}");
        let text = shortened(&text, 80);
        bail!("a pod named `{}`: not a valid name", escaped(&text));
    }
    Ok(())
}

/// A port that a container declares; `None` if its number is not valid.
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

    use super::json::page as json;
    use super::protobuf::page as protobuf;
    use super::*;
    use crate::model::Texts;

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
        let reads = Reads::default();
        let page = decode(&mut body, &mut vec![b'{'; 100_000], &reads, &mut |pod| {
            pods.push(pod.into_owned());
            Ok(())
        })?;
        Ok((page, pods))
    }

    fn pods(decode: Decode, body: &[u8]) -> anyhow::Result<Vec<model::Pod<'static>>> {
        decoded(decode, body).map(|(_, pods)| pods)
    }

    #[test]
    fn json_and_protobuf_decode_to_the_same_pods() {
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
    fn of_labels_and_annotations_those_that_are_read() {
        let body = recorded("lists/mixed.protobuf.body");
        let reads = Reads {
            names: vec!["app".to_owned()],
            prefix: "prometheus.io/".to_owned(),
        };
        let (mut kept, mut left_out) = (0, 0);
        let mut all = pods(protobuf, &body).expect("a page").into_iter();
        protobuf(&mut &*body, &mut Vec::new(), &reads, &mut |pod| {
            let mut whole = all.next().expect("as many pods");
            for (own, whole) in [
                (&pod.labels, &mut whole.labels),
                (&pod.annotations, &mut whole.annotations),
            ] {
                let read = |(name, _): &(&str, &str)| reads.contains(name.as_bytes());
                kept += own.iter().count();
                left_out += whole.iter().filter(|text| !read(text)).count();
                let read = whole.iter().filter(read);
                *whole = read.map(|(n, t)| (n.to_owned(), t.to_owned())).collect();
            }
            assert_eq!(pod.into_owned(), whole);
            Ok(())
        })
        .expect("a page");
        assert!(kept > 0 && left_out > 0, "{kept} {left_out}");
        assert_eq!(all.next(), None);
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
    fn errors_in_json_and_protobuf_have_the_same_message() {
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
    fn an_empty_list_needs_a_resource_version() {
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
        // Go's encoding of an empty list.
        let null = r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":null}"#;
        assert_eq!(pods(json, null.as_bytes()).expect("a list"), []);
        // The error names the kind, wherever it is in the page, not a fault of its first item.
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
                // The JSON page ends with a line feed that is not part of it. The envelope ends with two
                // empty fields, and is complete without them.
                let whole = body.trim_ascii_end();
                let whole = whole.strip_suffix(b"\x1a\0\x22\0").unwrap_or(whole).len();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                    reason = "a place somewhere in a page")]
                body.truncate((at * whole as f64) as usize);
                prop_assert!(pods(decode, &body).is_err(), "{name}");
            }
        }

        /// What our decoder accepts, prost decodes to the same pods.
        #[test]
        fn decoding_agrees_with_prost(
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
        fn malformed_messages_are_errors(body in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(pods(json, &body).is_err());
            let mut enveloped = MAGIC.to_vec();
            enveloped.extend(&body);
            let _ = pods(protobuf, &enveloped);
            prop_assert!(pods(protobuf, &body).is_err());
        }
    }
}
