//! Streaming decoder for pods in protobuf: only the fields that are needed, borrowed from one small buffer.
//! Incomplete input is an error, never a shorter list.

use std::borrow::Cow;
use std::io::{self, Read};

use anyhow::bail;

use super::{Each, ListMeta, Page, add_ip, check_names, kind_text, port};
use crate::model::{Phase, Pod, Reads, Texts};

/// The first bytes of a protobuf answer.
pub(super) const MAGIC: &[u8] = b"k8s\0";

/// The initial size of the buffer, in bytes.
const CHUNK: usize = 1 << 16;

/// A message that is truncated or not valid protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a truncated or malformed message")]
pub(super) struct Malformed;

/// A field's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
    /// A fixed-size value: no needed field has one.
    Fixed,
}

impl<'m> Value<'m> {
    pub(super) fn bytes(self) -> Result<&'m [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed => Err(Malformed),
        }
    }

    pub(super) fn text(self) -> Result<&'m str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    fn cow(self) -> Result<Cow<'m, str>, Malformed> {
        self.text().map(Cow::Borrowed)
    }

    /// An `int32`. Longer values are truncated, as protobuf specifies.
    fn int32(self) -> Result<i32, Malformed> {
        let [a, b, c, d, ..] = self.number()?.to_le_bytes();
        Ok(i32::from_le_bytes([a, b, c, d]))
    }

    fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) | Self::Fixed => Err(Malformed),
        }
    }
}

/// The fields of a message, in order.
pub(super) struct Fields<'m>(pub(super) &'m [u8]);

impl<'m> Fields<'m> {
    /// The next field's number and value; `None` at the end.
    #[expect(
        clippy::inline_always,
        reason = "it is most of what a run decodes, and its result is large"
    )]
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'m>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, kind) = key(varint(&mut self.0)?)?;
        let value = match kind {
            WireType::Number => Value::Number(varint(&mut self.0)?),
            WireType::Bytes => {
                let length = varint(&mut self.0)?;
                Value::Bytes(self.take(length)?)
            }
            WireType::Fixed(length) => {
                self.take(length)?;
                Value::Fixed
            }
        };
        Ok(Some((tag, value)))
    }

    fn take(&mut self, length: u64) -> Result<&'m [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// A field's wire type.
enum WireType {
    Number,
    Bytes,
    /// A value of this many bytes.
    Fixed(u64),
}

/// Splits a key into field number and wire type. Groups are an error: Kubernetes has none.
#[inline]
fn key(key: u64) -> Result<(u64, WireType), Malformed> {
    let tag = key >> 3;
    if tag == 0 || key > u64::from(u32::MAX) {
        return Err(Malformed);
    }
    let kind = match key & 7 {
        0 => WireType::Number,
        1 => WireType::Fixed(8),
        2 => WireType::Bytes,
        5 => WireType::Fixed(4),
        _ => return Err(Malformed),
    };
    Ok((tag, kind))
}

#[inline]
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    match **bytes {
        [byte @ ..0x80, ref rest @ ..] => {
            *bytes = rest;
            Ok(u64::from(byte))
        }
        // Lengths of less than 16 KiB, and fields below 2048.
        [low, high @ ..0x80, ref rest @ ..] => {
            *bytes = rest;
            Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
        }
        _ => long_varint(bytes),
    }
}

#[cold]
fn long_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte holds the last bit.
        if index == 9 && *byte > 1 {
            return Err(Malformed);
        }
        number |= bits << (7 * index);
        if *byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Ok(number);
        }
    }
    Err(Malformed)
}

/// Decodes a page while reading it to its end, and passes each pod on.
pub(in crate::kube) fn page(
    input: &mut dyn Read,
    buffer: &mut Vec<u8>,
    reads: &Reads,
    each: &mut Each,
) -> anyhow::Result<Page> {
    let mut source = Source::new(input, buffer);
    if source.take(MAGIC.len() as u64)? != Some(MAGIC) {
        bail!("not a Kubernetes protobuf message");
    }
    // `runtime.Unknown`, the envelope: its lengths reveal a truncated list.
    let mut kind = None::<String>;
    let mut encoding = String::new();
    let mut meta = None::<ListMeta>;
    while let Some((tag, head)) = source.head()? {
        match (tag, head) {
            (1, Head::Bytes(length)) => kind = Some(kind_of(source.require(length)?)?),
            (2, Head::Bytes(length)) => {
                if let Some(kind) = kind.as_deref().filter(|kind| *kind != "PodList") {
                    bail!("wanted a PodList, got {}", kind_text(kind));
                }
                if length == 0 {
                    bail!("an empty pod list message: it is incomplete");
                }
                if meta.is_some() {
                    bail!("two pod lists in one message");
                }
                meta = Some(list(&mut source, length, reads, each)?);
            }
            (3, Head::Bytes(length)) => {
                let text = Value::Bytes(source.require(length)?).text()?;
                text.clone_into(&mut encoding);
            }
            (1..=3, Head::Done) => return Err(Malformed.into()),
            (_, Head::Bytes(length)) => source.skip(length)?,
            (_, Head::Done) => {}
        }
    }
    if !encoding.is_empty() {
        bail!("a message in the unknown encoding `{encoding}`");
    }
    match kind.as_deref() {
        Some("PodList") => Page::new(meta.unwrap_or_default()),
        kind => bail!(
            "wanted a PodList, got {}",
            kind_text(kind.unwrap_or_default())
        ),
    }
}

/// The list itself: `PodList`.
fn list(
    source: &mut Source,
    length: u64,
    reads: &Reads,
    each: &mut Each,
) -> anyhow::Result<ListMeta> {
    let mut meta = ListMeta::default();
    let end = source.position().checked_add(length).ok_or(Malformed)?;
    while source.position() < end {
        let Some((tag, head)) = source.head()? else {
            return Err(Malformed.into());
        };
        let left = end.checked_sub(source.position()).ok_or(Malformed)?;
        match (tag, head) {
            (_, Head::Bytes(length)) if length > left => return Err(Malformed.into()),
            (1, Head::Bytes(length)) => {
                let mut fields = Fields(source.require(length)?);
                while let Some((tag, value)) = fields.next()? {
                    match tag {
                        2 => value.text()?.clone_into(&mut meta.resource_version),
                        3 => value.text()?.clone_into(&mut meta.r#continue),
                        _ => {}
                    }
                }
            }
            (2, Head::Bytes(length)) => each(pod(source.require(length)?, reads)?)?,
            (1 | 2, Head::Done) => return Err(Malformed.into()),
            (_, Head::Bytes(length)) => source.skip(length)?,
            (_, Head::Done) => {}
        }
    }
    Ok(meta)
}

/// The kind that a `TypeMeta` names.
fn kind_of(message: &[u8]) -> Result<String, Malformed> {
    let mut kind = "";
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        if tag == 2 {
            kind = value.text()?;
        }
    }
    Ok(kind.to_owned())
}

/// Decodes one pod.
fn pod<'m>(message: &'m [u8], reads: &Reads) -> anyhow::Result<Pod<'m>> {
    let mut pod = Pod::default();
    let mut sidecar_ports = Vec::new();
    let mut pod_ip = "";
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => metadata(value.bytes()?, reads, &mut pod)?,
            2 => spec(value.bytes()?, &mut pod, &mut sidecar_ports)?,
            3 => status(value.bytes()?, &mut pod, &mut pod_ip)?,
            _ => {}
        }
    }
    pod.ports.append(&mut sidecar_ports);
    if pod.ips.is_empty() {
        pod.unreadable_ip |= !add_ip(&mut pod.ips, pod_ip);
    }
    check_names(&pod.namespace, &pod.name)?;
    Ok(pod)
}

/// `ObjectMeta`.
fn metadata<'m>(message: &'m [u8], reads: &Reads, pod: &mut Pod<'m>) -> Result<(), Malformed> {
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => pod.name = value.cow()?,
            3 => pod.namespace = value.cow()?,
            9 => {
                value.bytes()?;
                pod.terminating = true;
            }
            11 => entry(value.bytes()?, reads, &mut pod.labels)?,
            12 => entry(value.bytes()?, reads, &mut pod.annotations)?,
            _ => {}
        }
    }
    Ok(())
}

/// One entry of a map of texts, kept if it is read.
fn entry<'m>(message: &'m [u8], reads: &Reads, texts: &mut Texts<'m>) -> Result<(), Malformed> {
    let empty = Value::Bytes(b"");
    let (mut key, mut text) = (empty, empty);
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => key = value,
            2 => text = value,
            _ => {}
        }
    }
    if reads.contains(key.bytes()?) {
        texts.insert(key.cow()?, text.cow()?);
    }
    Ok(())
}

type Ports<'m> = Vec<crate::model::ContainerPort<'m>>;

/// `PodSpec`. The ports of sidecars come after all others.
fn spec<'m>(
    message: &'m [u8],
    pod: &mut Pod<'m>,
    sidecar_ports: &mut Ports<'m>,
) -> Result<(), Malformed> {
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            2 => {
                container(value.bytes()?, false, &mut pod.ports)?;
            }
            11 => pod.host_network = value.number()? != 0,
            20 => {
                let before = sidecar_ports.len();
                let always = container(value.bytes()?, true, sidecar_ports)?;
                if !always {
                    sidecar_ports.truncate(before);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// `Container`: adds its ports. `true` if its restart policy is `Always`.
fn container<'m>(
    message: &'m [u8],
    sidecar: bool,
    ports: &mut Ports<'m>,
) -> Result<bool, Malformed> {
    let mut always = false;
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            6 => {
                let (mut name, mut number, mut protocol) = ("", 0, "");
                let mut fields = Fields(value.bytes()?);
                while let Some((tag, value)) = fields.next()? {
                    match tag {
                        1 => name = value.text()?,
                        3 => number = i64::from(value.int32()?),
                        4 => protocol = value.text()?,
                        _ => {}
                    }
                }
                ports.extend(port(Cow::Borrowed(name), number, protocol, sidecar));
            }
            24 => always = value.text()? == "Always",
            _ => {}
        }
    }
    Ok(always)
}

/// `PodStatus`. `pod_ip` receives the older field `podIP`, for pods without `podIPs`.
fn status<'m>(message: &'m [u8], pod: &mut Pod<'_>, pod_ip: &mut &'m str) -> Result<(), Malformed> {
    let mut fields = Fields(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => pod.phase = Phase::parse(value.text()?),
            2 => {
                let (mut kind, mut status) = ("", "");
                let mut fields = Fields(value.bytes()?);
                while let Some((tag, value)) = fields.next()? {
                    match tag {
                        1 => kind = value.text()?,
                        2 => status = value.text()?,
                        _ => {}
                    }
                }
                pod.ready |= kind == "Ready" && status == "True";
            }
            6 => *pod_ip = value.text()?,
            12 => {
                let mut ip = "";
                let mut fields = Fields(value.bytes()?);
                while let Some((tag, value)) = fields.next()? {
                    if tag == 1 {
                        ip = value.text()?;
                    }
                }
                pod.unreadable_ip |= !add_ip(&mut pod.ips, ip);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A field's wire type, once its key is read.
enum Head {
    /// A value of this many bytes follows.
    Bytes(u64),
    /// The value was of fixed size or a number, and is consumed.
    Done,
}

/// A buffered reader of one message.
struct Source<'r> {
    input: &'r mut dyn Read,
    buffer: &'r mut Vec<u8>,
    /// `start..end` of the buffer is read and not consumed.
    start: usize,
    end: usize,
    /// Bytes consumed so far.
    taken: u64,
}

impl<'r> Source<'r> {
    fn new(input: &'r mut dyn Read, buffer: &'r mut Vec<u8>) -> Self {
        if buffer.len() < CHUNK {
            buffer.resize(CHUNK, 0);
        }
        Self {
            input,
            buffer,
            start: 0,
            end: 0,
            taken: 0,
        }
    }

    fn position(&self) -> u64 {
        self.taken
    }

    /// Buffers at least `wanted` bytes. `false` if the input ends before.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        while self.end - self.start < wanted {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.end == self.buffer.len() {
                // Grow gradually: the declared length is untrusted.
                self.buffer.resize(2 * self.end, 0);
            }
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, length: usize) {
        self.start += length;
        self.taken += length as u64;
    }

    /// Consumes the next `length` bytes; `None` if the input ends before.
    fn take(&mut self, length: u64) -> io::Result<Option<&[u8]>> {
        let Ok(length) = usize::try_from(length) else {
            return Ok(None);
        };
        if !self.fill(length)? {
            return Ok(None);
        }
        self.advance(length);
        Ok(Some(&self.buffer[self.start - length..self.start]))
    }

    /// Like [`Self::take`], but the end of input is an error.
    fn require(&mut self, length: u64) -> anyhow::Result<&[u8]> {
        self.take(length)?.ok_or_else(|| Malformed.into())
    }

    fn skip(&mut self, mut length: u64) -> anyhow::Result<()> {
        while length > 0 {
            let part = length.min(CHUNK as u64);
            self.require(part)?;
            length -= part;
        }
        Ok(())
    }

    fn varint(&mut self) -> anyhow::Result<u64> {
        /// In bytes.
        const LONGEST: usize = 10;
        // At the end of the input there may be less.
        self.fill(LONGEST)?;
        let all = &self.buffer[self.start..self.end];
        let mut rest = all;
        let number = varint(&mut rest)?;
        let length = all.len() - rest.len();
        self.advance(length);
        Ok(number)
    }

    /// Reads the next field's number and wire type; `None` at the end of the input.
    fn head(&mut self) -> anyhow::Result<Option<(u64, Head)>> {
        if !self.fill(1)? {
            return Ok(None);
        }
        let number = self.varint()?;
        let (tag, kind) = key(number)?;
        let head = match kind {
            WireType::Number => {
                self.varint()?;
                Head::Done
            }
            WireType::Bytes => Head::Bytes(self.varint()?),
            WireType::Fixed(length) => {
                self.skip(length)?;
                Head::Done
            }
        };
        Ok(Some((tag, head)))
    }
}
