//! The pods of a run: listed from an API server or a file, and mapped to servers.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::Context as _;

use super::list::{Api, Error, Selection};
use super::{Options, file};
use crate::model::{BackendId, Pod};
use crate::net::deadline::Deadline;
use crate::reconcile::evidence::{Coverage, List, Lists};
use crate::reconcile::map::Mapping;
use crate::reconcile::template::Template;
use crate::text::redacted;
use crate::waiting::waiting;

/// A source of pods.
pub enum Source {
    /// An API server.
    Api {
        /// Where it is, and the credentials for it.
        options: Box<Options>,
        /// The namespaces to list.
        namespaces: Namespaces,
        /// The label selector.
        labels: Option<String>,
        /// The field selector.
        fields: Option<String>,
    },
    /// The path of a file with the output of `kubectl get pods -o json`; `-` is stdin.
    File(String),
}

impl Source {
    /// Whether several namespaces are asked for and this backend template could mix their pods.
    pub(crate) fn mixes(&self, template: &Template) -> bool {
        let Self::Api { namespaces, .. } = self else {
            return false;
        };
        let several = match namespaces {
            Namespaces::All => true,
            Namespaces::Named(names) => names.len() > 1,
            Namespaces::Default => false,
        };
        several && !template.separates_namespaces()
    }
}

/// Which namespaces are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// The context's, or the service account's.
    Default,
    /// These.
    Named(BTreeSet<String>),
    /// All of the cluster.
    All,
}

/// The backend template could mix the ids of several namespaces: a usage error found late, because only the
/// pods of a file tell their namespaces.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NamespacesMix(String);

/// The message for a backend template that could mix several namespaces.
#[must_use]
pub(crate) fn namespaces_mix(template: &Template) -> String {
    format!(
        "with several namespaces `--backend {template}` could mix their pods: begin it with \
         `{{namespace}}` and one of `.`, `_`, `:`, for example `--backend '{{namespace}}.{{name}}.svc'`"
    )
}

/// A source of pods, and their mapping to servers.
pub(crate) struct Pods<'c> {
    origin: Origin<'c>,
    mapping: &'c Mapping,
}

enum Origin<'c> {
    File(&'c str),
    /// The content of stdin: read before the store is locked, and kept for planning again.
    Stdin(Vec<u8>),
    Api {
        api: Box<Api>,
        namespaces: Vec<Option<String>>,
        labels: Option<&'c str>,
        fields: Option<&'c str>,
    },
}

impl<'c> Pods<'c> {
    /// Opens the source of the pods. Sends no request yet; reads stdin.
    ///
    /// # Errors
    /// A kubeconfig or service account that cannot be used.
    pub(crate) fn open(
        source: &'c Source,
        mapping: &'c Mapping,
        deadline: Deadline,
    ) -> anyhow::Result<Self> {
        let origin = match source {
            Source::File(path) if path == "-" => {
                let text = waiting(&"the pods on stdin", || file::stdin(deadline));
                Origin::Stdin(text.context("failed to read the pods")?)
            }
            Source::File(path) => Origin::File(path),
            Source::Api {
                options,
                namespaces,
                labels,
                fields,
            } => {
                let api = Box::new(Api::open(options, mapping.reads(), deadline)?);
                let namespaces = match namespaces {
                    Namespaces::Default => vec![Some(api.namespace().to_owned())],
                    Namespaces::Named(names) => names.iter().cloned().map(Some).collect(),
                    Namespaces::All => vec![None],
                };
                Origin::Api {
                    api,
                    namespaces,
                    labels: labels.as_deref(),
                    fields: fields.as_deref(),
                }
            }
        };
        Ok(Self { origin, mapping })
    }

    /// The source of the pods, for messages.
    pub(crate) fn place(&self) -> String {
        match &self.origin {
            Origin::File(path) => format!("the pods in `{path}`"),
            Origin::Stdin(_) => "the pods on stdin".to_owned(),
            Origin::Api { api, .. } => format!("the pods of {}", redacted(api.server())),
        }
    }

    /// The cluster's fingerprint for the scope; `file` for pods from a file.
    #[must_use]
    pub(crate) fn cluster(&self) -> String {
        match &self.origin {
            Origin::File(_) | Origin::Stdin(_) => "file".to_owned(),
            Origin::Api { api, .. } => api.cluster(),
        }
    }

    /// Lists and maps all pods. `look` sees each pod before it is mapped.
    ///
    /// # Errors
    /// A failed or incomplete list; [`NamespacesMix`].
    pub(crate) fn list(&mut self, look: &mut dyn FnMut(&Pod<'_>)) -> anyhow::Result<Lists> {
        let mut namespace = Rc::<str>::default();
        let mut backend = None::<BackendId>;
        let mut map = |pod: Pod<'_>| {
            look(&pod);
            let mut seen = self.mapping.map(&pod);
            // Pods arrive sorted: neighbours share equal names.
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
        let read = match &mut self.origin {
            Origin::File(path) => file::read(path, &mut map),
            Origin::Stdin(text) => file::decode("stdin", text, &mut map),
            Origin::Api {
                api,
                namespaces,
                labels,
                fields,
            } => {
                lists.selected = labels.is_some() || fields.is_some();
                for namespace in namespaces {
                    let selection = Selection {
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
                return Ok(lists);
            }
        };
        let file::Pods { pods, complete } = read.context("failed to read the pods")?;
        let seen = pods
            .iter()
            .map(|pod| &pod.name.namespace)
            .collect::<BTreeSet<_>>();
        if seen.len() > 1 && !self.mapping.backend.separates_namespaces() {
            return Err(NamespacesMix(namespaces_mix(&self.mapping.backend)).into());
        }
        let coverage = if complete {
            Coverage::Seen
        } else {
            Coverage::Partial
        };
        lists.lists.push(List { coverage, pods });
        Ok(lists)
    }

    /// Lists these namespaces again without selectors, to prove which pods are gone. A list that the server
    /// refuses is stored as its reason: it proves nothing.
    ///
    /// # Errors
    /// A list that failed otherwise, or is incomplete.
    pub(crate) fn list_again(
        &mut self,
        namespaces: &BTreeSet<String>,
        lists: &mut Lists,
    ) -> anyhow::Result<()> {
        let Origin::Api { api, .. } = &mut self.origin else {
            return Ok(());
        };
        for namespace in namespaces {
            let selection = Selection {
                namespace: Some(namespace),
                labels: None,
                fields: None,
            };
            let answer = match api.list(&selection, &mut |pod| self.mapping.map(&pod)) {
                Ok(pods) => Ok(pods),
                Err(Error::Refused(why)) => Err(why),
                Err(error) => {
                    return Err(error).context("failed to list pods once more without selectors");
                }
            };
            lists.again.insert(namespace.clone(), answer);
        }
        Ok(())
    }
}

/// Replaces `new` by a clone of an equal `last`, which only counts a reference; else remembers it as `last`.
fn share<T: Clone + PartialEq>(last: &mut T, new: &mut T) {
    if new == last {
        new.clone_from(last);
    } else {
        last.clone_from(new);
    }
}
