//! Decoder for pages of pods in JSON: only the fields that are needed, borrowed from the page.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;

use anyhow::{anyhow, bail};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Each, ListMeta, Page, add_ip, check_names, kind_text, port};
use crate::model::{self, Reads, Texts};

/// A `Pod`.
#[derive(Deserialize)]
pub(in crate::kube) struct Pod<'j> {
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

/// Reads and decodes a page in JSON, and passes each pod on, with all labels and annotations.
pub(in crate::kube) fn page(
    input: &mut dyn Read,
    body: &mut Vec<u8>,
    _: &Reads,
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
        Ok((kind, _)) => bail!("wanted a PodList, got {}", kind_text(&kind)),
        Err(error) => error,
    };
    match (serde_json::from_slice::<Typed>(body), list.refused) {
        (Ok(Typed { kind }), _) if kind != "PodList" => {
            bail!("wanted a PodList, got {}", kind_text(&kind))
        }
        (_, Some(refused)) => Err(refused),
        (_, None) => Err(anyhow!(
            "a pod list that is incomplete or not JSON: {error}"
        )),
    }
}

/// Decodes a list and passes each pod on at once, so that only one is in memory.
struct List<'l, 'e> {
    each: &'l mut Each<'e>,
    /// Why a pod was refused, here or by `each`.
    refused: Option<anyhow::Error>,
}

impl<'de> DeserializeSeed<'de> for &mut List<'_, '_> {
    /// The kind and the metadata.
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
            let is_duplicate = match field {
                Field::Kind => kind.replace(map.next_value()?).is_some(),
                Field::Metadata => metadata.replace(map.next_value()?).is_some(),
                Field::Items => items.replace(map.next_value_seed(Items(self))?).is_some(),
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if is_duplicate {
                return Err(A::Error::custom("a duplicate field"));
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
                return Err(A::Error::custom("a pod that is refused"));
            }
        }
        Ok(())
    }
}

/// Decodes one pod in JSON, as `kubectl` prints it.
pub(in crate::kube) fn pod(text: &str) -> serde_json::Result<Pod<'_>> {
    serde_json::from_str(text)
}

impl<'j> Pod<'j> {
    /// Converts to the model's pod, and checks its names.
    pub(in crate::kube) fn convert(self) -> anyhow::Result<model::Pod<'j>> {
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
