//! Pods from a Kubernetes API server, or from a file that `kubectl` wrote.

mod credentials;
mod exec;
pub(crate) mod file;
mod kubeconfig;
mod list;
mod pods;
mod proxy;
mod wire;

pub(crate) use exec::kill_plugin;
pub use kubeconfig::Options;
pub use list::{Api, Selection};
pub use pods::NamespacesMix;
pub(crate) use pods::{Namespaces, Pods, Source, namespaces_mix};

use std::path::Path;

use crate::model::{Pod, Reads};

/// Decodes a page of pods in JSON: for benchmarks and fuzz targets.
///
/// # Errors
/// When it is not a complete page of pods.
#[doc(hidden)]
pub fn pods_from_json(page: &[u8]) -> anyhow::Result<Vec<Pod<'static>>> {
    collected(page, wire::json::page)
}

/// Decodes a page of pods in protobuf: for benchmarks and fuzz targets.
///
/// # Errors
/// When it is not a complete page of pods.
#[doc(hidden)]
#[expect(clippy::needless_pass_by_value, reason = "callers own the page anyway")]
pub fn pods_from_protobuf(page: Vec<u8>) -> anyhow::Result<Vec<Pod<'static>>> {
    collected(&page, wire::protobuf::page)
}

fn collected(mut page: &[u8], decode: wire::Decode) -> anyhow::Result<Vec<Pod<'static>>> {
    let mut pods = Vec::new();
    decode(&mut page, &mut Vec::new(), &Reads::default(), &mut |pod| {
        pods.push(pod.into_owned());
        Ok(())
    })?;
    Ok(pods)
}

/// Parses and validates a kubeconfig, without network: for fuzz targets.
///
/// # Errors
/// When it is not a valid kubeconfig.
#[doc(hidden)]
pub fn check_kubeconfig(path: &Path) -> anyhow::Result<()> {
    let options = Options {
        kubeconfig: vec![path.to_owned()],
        explicit: true,
        ..Options::default()
    };
    kubeconfig::access(&options).map(drop)
}

/// Parses the first document of a YAML text as Go's tools do: the last of equal keys wins, and later
/// documents are ignored. `None` if there is no document.
///
/// # Errors
/// The parser's, which may quote the text.
fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<Option<T>, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    let mut bytes = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options(&mut bytes, options);
    documents.next().transpose()
}
