//! Pods from a Kubernetes API server, or from a file that `kubectl` wrote.

mod credentials;
mod exec;
pub(crate) mod file;
mod kubeconfig;
mod list;
mod pods;
mod proxy;
mod wire;

pub(crate) use exec::end_plugin;
pub use kubeconfig::Options;
pub use list::{Api, Selection};
pub use pods::NamespacesMix;
pub(crate) use pods::{Namespaces, Pods, Source, namespaces_mix};

use std::path::Path;

use crate::model::Pod;

/// One page in JSON to its pods: what benchmarks and fuzz targets of the decoder call.
///
/// # Errors
/// What is no whole page of pods.
#[doc(hidden)]
pub fn pods_from_json(page: &[u8]) -> anyhow::Result<Vec<Pod<'static>>> {
    collected(page, wire::json::page)
}

/// The same in protobuf.
///
/// # Errors
/// What is no whole page of pods.
#[doc(hidden)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "what calls it has the page anyway"
)]
pub fn pods_from_protobuf(page: Vec<u8>) -> anyhow::Result<Vec<Pod<'static>>> {
    collected(&page, wire::protobuf::page)
}

fn collected(mut page: &[u8], decode: wire::Decode) -> anyhow::Result<Vec<Pod<'static>>> {
    let mut pods = Vec::new();
    decode(&mut page, &mut Vec::new(), &mut |pod| {
        pods.push(pod.into_owned());
        Ok(())
    })?;
    Ok(pods)
}

/// A kubeconfig, read and understood as far as it can be without asking anybody: for fuzz targets.
///
/// # Errors
/// What is no kubeconfig.
#[doc(hidden)]
pub fn check_kubeconfig(path: &Path) -> anyhow::Result<()> {
    let options = Options {
        kubeconfig: vec![path.to_owned()],
        explicit: true,
        ..Options::default()
    };
    kubeconfig::access(&options).map(drop)
}

/// Reads the first document of a YAML text as Go's tools do: of equal keys the last one counts, and what
/// follows the document is not looked at. `None` if there is none.
///
/// # Errors
/// What the parser says. It may quote the text.
fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<Option<T>, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    let mut bytes = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options(&mut bytes, options);
    documents.next().transpose()
}
