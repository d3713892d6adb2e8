//! From configuration to the two sides of a run: the store, and the pods.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use anyhow::Context as _;

use crate::config::{Namespaces, Password, Source, StoreConfig, namespaces_mix};
use crate::kube;
use crate::model::{BackendId, Pod};
use crate::net::deadline::Deadline;
use crate::net::tls::{Identity, Tls};
use crate::reconcile::evidence::{Coverage, List, Lists};
use crate::reconcile::map::Mapping;
use crate::report::etcdctl::Api;
use crate::store::{Store, endpoints, etcd2::Etcd2, etcd3::Etcd3, file::File};

/// Several namespaces share one template that would mix their ids: a usage error found late, because
/// only the pods of a file say of which namespaces they are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NamespacesMix(String);

/// Opens the store. Nothing is asked of it yet.
///
/// # Errors
/// A file that cannot be read, or says no.
pub(crate) fn store(
    config: &StoreConfig,
    dry_run: bool,
    deadline: Deadline,
) -> anyhow::Result<Box<dyn Store>> {
    let (api, options) = match config {
        StoreConfig::File(path) => return Ok(Box::new(File::open(path, dry_run, deadline)?)),
        StoreConfig::Etcd {
            api,
            etcdctl: _,
            endpoints,
            cacert,
            identity,
            user,
        } => {
            let identity = match identity {
                Some((certificate, key)) => Some(Identity {
                    certificate: read(certificate)?,
                    key: read(key)?,
                }),
                None => None,
            };
            let user = match user {
                Some((name, password)) => {
                    let password = match password {
                        Password::Given(password) => password.clone(),
                        Password::File(path) => String::from_utf8(read(path)?)
                            .ok()
                            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                            .with_context(|| format!("`{}` is not UTF-8", path.display()))?,
                    };
                    Some(endpoints::User {
                        name: name.clone(),
                        password,
                    })
                }
                None => None,
            };
            let ca = cacert.as_deref().map(read).transpose()?;
            let endpoints = endpoints.clone();
            (
                api,
                endpoints::Options {
                    endpoints,
                    tls: Tls {
                        ca,
                        identity,
                        insecure: false,
                    },
                    user,
                },
            )
        }
    };
    Ok(match api {
        Api::V3 => Box::new(Etcd3::open(options, deadline)?),
        Api::V2 => Box::new(Etcd2::open(options, deadline)?),
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
}

/// Where pods are listed, and how they become servers.
pub(crate) struct Pods<'c> {
    from: From<'c>,
    mapping: &'c Mapping,
}

enum From<'c> {
    File(&'c str),
    Api {
        api: Box<kube::Api>,
        namespaces: Vec<Option<String>>,
        labels: Option<&'c str>,
        fields: Option<&'c str>,
    },
}

impl<'c> Pods<'c> {
    /// Opens the way to the pods. Nothing is asked yet.
    ///
    /// # Errors
    /// A kubeconfig or service account that cannot be used.
    pub(crate) fn open(
        source: &'c Source,
        mapping: &'c Mapping,
        deadline: Deadline,
    ) -> anyhow::Result<Self> {
        let from = match source {
            Source::File(path) => From::File(path),
            Source::Api {
                options,
                namespaces,
                labels,
                fields,
            } => {
                let api = Box::new(kube::Api::open(options, deadline)?);
                let namespaces = match namespaces {
                    Namespaces::Default => vec![Some(api.namespace().to_owned())],
                    Namespaces::Named(names) => names.iter().cloned().map(Some).collect(),
                    Namespaces::All => vec![None],
                };
                From::Api {
                    api,
                    namespaces,
                    labels: labels.as_deref(),
                    fields: fields.as_deref(),
                }
            }
        };
        Ok(Self { from, mapping })
    }

    /// The cluster's own name, for the scope.
    #[must_use]
    pub(crate) fn cluster(&self) -> String {
        match &self.from {
            From::File(_) => "file".to_owned(),
            From::Api { api, .. } => api.cluster(),
        }
    }

    /// Lists all pods, completely.
    ///
    /// # Errors
    /// A list that failed, or was not whole; [`NamespacesMix`].
    pub(crate) fn list(&mut self) -> anyhow::Result<Lists> {
        let mut namespace = Rc::<str>::default();
        let mut backend = None::<BackendId>;
        let mut map = |pod: Pod<'_>| {
            let mut seen = self.mapping.map(pod);
            // Pods come in order: what they have in common is kept once.
            share(&mut namespace, &mut seen.name.namespace);
            for want in &mut seen.wants {
                share(
                    backend.get_or_insert_with(|| want.backend.clone()),
                    &mut want.backend,
                );
            }
            seen
        };
        let mut lists = Lists::default();
        match &mut self.from {
            From::File(path) => {
                let kube::file::Pods { pods, complete } =
                    kube::file::read(path, &mut map).context("failed to read the pods")?;
                let seen = pods
                    .iter()
                    .map(|pod| &pod.name.namespace)
                    .collect::<BTreeSet<_>>();
                if seen.len() > 1 && !self.mapping.backend.separates_namespaces() {
                    return Err(NamespacesMix(namespaces_mix(&self.mapping.backend)).into());
                }
                lists.lists.push(List {
                    coverage: if complete {
                        Coverage::Seen
                    } else {
                        Coverage::Partial
                    },
                    pods,
                });
            }
            From::Api {
                api,
                namespaces,
                labels,
                fields,
            } => {
                lists.selected = labels.is_some() || fields.is_some();
                for namespace in namespaces {
                    let selection = kube::Selection {
                        namespace: namespace.as_deref(),
                        labels: *labels,
                        fields: *fields,
                    };
                    let pods = api
                        .list(&selection, &mut map)
                        .context("failed to list pods")?;
                    let coverage = namespace.clone().map_or(Coverage::All, Coverage::Namespace);
                    lists.lists.push(List { coverage, pods });
                }
            }
        }
        Ok(lists)
    }

    /// Lists these namespaces once more without selectors, to prove who is gone. A list that the
    /// server refuses proves nothing, and says why.
    ///
    /// # Errors
    /// A list that failed otherwise, or was not whole.
    pub(crate) fn list_again(
        &mut self,
        namespaces: &BTreeSet<String>,
        lists: &mut Lists,
    ) -> anyhow::Result<()> {
        let From::Api { api, .. } = &mut self.from else {
            return Ok(());
        };
        for namespace in namespaces {
            let selection = kube::Selection {
                namespace: Some(namespace),
                labels: None,
                fields: None,
            };
            let answer = match api.list(&selection, &mut |pod| self.mapping.map(pod)) {
                Ok(pods) => Ok(pods),
                Err(kube::Error::Refused(why)) => Err(why),
                Err(error) => {
                    return Err(error).context("failed to list pods once more without selectors");
                }
            };
            lists.again.insert(namespace.clone(), answer);
        }
        Ok(())
    }
}

/// Makes one of two values that are the same, as a copy costs nothing; else keeps the new one for the next.
fn share<T: Clone + PartialEq>(last: &mut T, new: &mut T) {
    if new == last {
        new.clone_from(last);
    } else {
        last.clone_from(new);
    }
}
