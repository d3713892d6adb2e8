//! Any number of pods derived from recorded ones, in both encodings: names, addresses, labels and uids vary,
//! sizes do not.

use std::ops::Range;
use std::path::Path;

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use serde_json::value::RawValue;

/// The encoding of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Protobuf,
}

/// Templates made from the recorded pods.
pub struct Pods {
    json: Vec<Template>,
    protobuf: Vec<Template>,
}

/// A pod in one encoding, and the ranges in it that vary.
struct Template {
    bytes: Vec<u8>,
    slots: Vec<(Range<usize>, Slot)>,
}

/// A part of a pod that varies.
#[derive(Clone, Copy)]
enum Slot {
    /// The end of the name.
    Name,
    /// The end of the uid.
    Uid,
    Ip,
    Namespace,
    /// The label that names the backend.
    App,
}

/// A placeholder for a pod's address, as long as the addresses that replace it.
const IP: &str = "10.100.100.100";
/// Pods per backend, and per namespace.
const BACKEND: usize = 20;
const NAMESPACE: usize = 200;

impl Pods {
    /// Reads the ready pods of two pages in `fixtures/kube/lists`.
    pub fn recorded() -> Self {
        let mut pods = Self {
            json: Vec::new(),
            protobuf: Vec::new(),
        };
        for page in ["page-1", "page-2"] {
            pods.add(
                &recorded(&format!("{page}.json.body")),
                &recorded(&format!("{page}.protobuf.body")),
            );
        }
        pods
    }

    fn add(&mut self, json: &[u8], protobuf: &[u8]) {
        #[derive(serde::Deserialize)]
        struct List<'l> {
            #[serde(borrow)]
            items: Vec<&'l RawValue>,
        }
        let list = serde_json::from_slice::<List>(json).expect("a page");
        let envelope = fields(protobuf.strip_prefix(b"k8s\0").expect("an envelope"));
        let raw = envelope.iter().find(|field| field.tag == 2);
        let items = fields(raw.expect("a message").payload);
        let items = items.iter().filter(|field| field.tag == 2);
        for (json, protobuf) in list.items.into_iter().zip(items) {
            let json = json.get();
            let pod = serde_json::from_str::<serde_json::Value>(json).expect("a pod");
            let conditions = pod["status"]["conditions"].as_array();
            let is_ready = |condition: &serde_json::Value| {
                condition["type"] == "Ready" && condition["status"] == "True"
            };
            if !conditions.is_some_and(|conditions| conditions.iter().any(is_ready)) {
                continue;
            }
            let text = |path: &str| pod.pointer(path).and_then(|value| value.as_str());
            let text = |path: &str| text(path).expect(path);
            let ip = text("/status/podIP");
            let app = text("/metadata/labels/app.kubernetes.io~1name");
            let namespace = text("/metadata/namespace");
            let common = [
                (text("/metadata/name").to_owned(), Slot::Name),
                (text("/metadata/uid").to_owned(), Slot::Uid),
                (IP.to_owned(), Slot::Ip),
            ];
            let json = json.replace(&format!("\"{ip}\""), &format!("\"{IP}\""));
            let own = [
                (
                    format!("\"app.kubernetes.io/name\":\"{app}"),
                    app.len(),
                    Slot::App,
                ),
                (
                    format!("\"namespace\":\"{namespace}"),
                    namespace.len(),
                    Slot::Namespace,
                ),
            ];
            self.json
                .push(Template::new(json.into_bytes(), &common, &own));
            let own = [
                (
                    format!("app.kubernetes.io/name\x12{}{app}", length(app)),
                    app.len(),
                    Slot::App,
                ),
                (
                    format!("\x1a{}{namespace}", length(namespace)),
                    namespace.len(),
                    Slot::Namespace,
                ),
            ];
            let protobuf = with_address(protobuf.payload, ip);
            self.protobuf.push(Template::new(protobuf, &common, &own));
        }
    }

    /// One page of these pods. `next` is the first pod of the next page.
    pub fn page(
        &self,
        encoding: Encoding,
        pods: impl Iterator<Item = usize>,
        next: Option<usize>,
    ) -> Vec<u8> {
        let next = next.map_or(String::new(), |next| next.to_string());
        let mut page = Vec::with_capacity(6 << 20);
        match encoding {
            Encoding::Json => {
                page.extend_from_slice(br#"{"kind":"PodList","apiVersion":"v1","metadata":"#);
                let metadata =
                    serde_json::json!({ "resourceVersion": "4711", "continue": next }).to_string();
                page.extend_from_slice(metadata.as_bytes());
                page.extend_from_slice(br#","items":["#);
                for (index, pod) in pods.enumerate() {
                    if index > 0 {
                        page.push(b',');
                    }
                    self.json[pod % self.json.len()].write(pod, &mut page);
                }
                page.extend_from_slice(b"]}\n");
            }
            Encoding::Protobuf => {
                let metadata = [field(2, b"4711"), field(3, next.as_bytes())].concat();
                page.extend_from_slice(&field(1, &metadata));
                for pod in pods {
                    let template = &self.protobuf[pod % self.protobuf.len()];
                    head(2, template.bytes.len(), &mut page);
                    template.write(pod, &mut page);
                }
                let kind = [field(1, b"v1"), field(2, b"PodList")].concat();
                page = [
                    &b"k8s\0"[..],
                    &field(1, &kind),
                    &field(2, &page),
                    &field(3, b""),
                    &field(4, b""),
                ]
                .concat();
            }
        }
        page
    }
}

impl Template {
    /// Finds the ranges that vary: the end of each `common` text, and the last bytes of each `own` one, as
    /// many as it says.
    fn new(bytes: Vec<u8>, common: &[(String, Slot)], own: &[(String, usize, Slot)]) -> Self {
        let mut slots = Vec::new();
        let mut find = |text: &str, length: usize, slot: Slot| {
            let text = text.as_bytes();
            let before = slots.len();
            for (at, window) in bytes.windows(text.len()).enumerate() {
                if window == text {
                    let end = at + text.len();
                    slots.push((end - length..end, slot));
                }
            }
            assert!(slots.len() > before, "each pod has this");
        };
        for (text, slot) in common {
            let length = match slot {
                Slot::Name => 5,
                Slot::Uid => 12,
                _ => text.len(),
            };
            find(text, length, *slot);
        }
        for (text, length, slot) in own {
            find(text, *length, *slot);
        }
        Self { bytes, slots }
    }

    fn write(&self, pod: usize, page: &mut Vec<u8>) {
        let start = page.len();
        page.extend_from_slice(&self.bytes);
        let ip = format!(
            "10.1{:02}.1{:02}.1{:02}",
            pod / 10_000 % 100,
            pod / 100 % 100,
            pod % 100
        );
        for (range, slot) in &self.slots {
            let place = &mut page[start + range.start..start + range.end];
            match slot {
                Slot::Name | Slot::Uid => digits(pod, b'0', place),
                Slot::Ip => place.copy_from_slice(ip.as_bytes()),
                Slot::Namespace => digits(pod / NAMESPACE, b'n', place),
                Slot::App => digits(pod / BACKEND, b'a', place),
            }
        }
    }
}

/// Writes a number to base 36 over a whole range; its first digit counts from `first`.
fn digits(mut number: usize, first: u8, place: &mut [u8]) {
    for digit in place.iter_mut().skip(1).rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[number % 36];
        number /= 36;
    }
    place[0] = first + u8::try_from(number).expect("a small number");
}

fn recorded(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kube/lists");
    std::fs::read(folder.join(name)).expect(name)
}

/// One field of a protobuf message.
struct Field<'m> {
    tag: u32,
    /// The field with its key and length.
    whole: &'m [u8],
    payload: &'m [u8],
}

fn fields(message: &[u8]) -> Vec<Field<'_>> {
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let start = rest;
        let (tag, kind) = decode_key(&mut rest).expect("a key");
        let length = match kind {
            WireType::Varint => {
                decode_varint(&mut rest).expect("a number");
                0
            }
            WireType::LengthDelimited => decode_varint(&mut rest).expect("a length"),
            _ => panic!("pods have no such fields"),
        };
        let (payload, after) = rest.split_at(usize::try_from(length).expect("a length"));
        rest = after;
        fields.push(Field {
            tag,
            whole: &start[..start.len() - rest.len()],
            payload,
        });
    }
    fields
}

/// A pod with [`IP`] in place of its address.
fn with_address(pod: &[u8], ip: &str) -> Vec<u8> {
    let (old, new) = (field(1, ip.as_bytes()), field(1, IP.as_bytes()));
    let status = |status: &[u8]| {
        let fields = fields(status).into_iter().map(|own| match own.tag {
            6 => field(6, IP.as_bytes()),
            12 if own.payload == old => field(12, &new),
            _ => own.whole.to_vec(),
        });
        fields.collect::<Vec<_>>().concat()
    };
    let fields = fields(pod).into_iter().map(|own| match own.tag {
        3 => field(3, &status(own.payload)),
        _ => own.whole.to_vec(),
    });
    fields.collect::<Vec<_>>().concat()
}

fn field(tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 8);
    head(tag, payload.len(), &mut out);
    out.extend_from_slice(payload);
    out
}

fn head(tag: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(u64::try_from(length).expect("a length"), out);
}

/// The length of a short text, as protobuf writes it.
fn length(text: &str) -> char {
    char::from(u8::try_from(text.len()).expect("a short text"))
}
