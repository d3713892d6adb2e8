//! The pods of a run: where they are listed, and how they become servers.

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

/// Where pods come from.
pub enum Source {
    /// An API server.
    Api {
        /// How it is found and spoken to.
        options: Box<Options>,
        /// Which namespaces are listed.
        namespaces: Namespaces,
        /// The label selector.
        labels: Option<String>,
        /// The field selector.
        fields: Option<String>,
    },
    /// What `kubectl get pods -o json` wrote to this file; `-` is stdin.
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

/// Several namespaces share one template that would mix their ids: a usage error found late, because
/// only the pods of a file say of which namespaces they are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NamespacesMix(String);

/// What is wrong with a backend template when pods of several namespaces are listed.
#[must_use]
pub(crate) fn namespaces_mix(template: &Template) -> String {
    format!(
        "with several namespaces `--backend {template}` could mix their pods: begin it with \
         `{{namespace}}` and one of `.`, `_`, `:`, for example `--backend '{{namespace}}.{{name}}.svc'`"
    )
}

/// Where pods are listed, and how they become servers.
pub(crate) struct Pods<'c> {
    from: From<'c>,
    mapping: &'c Mapping,
}

enum From<'c> {
    File(&'c str),
    /// What stdin held: read before the store is listed, so that nobody waits for its lock meanwhile, and kept
    /// for planning anew.
    Stdin(Vec<u8>),
    Api {
        api: Box<Api>,
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
            Source::File(path) if path == "-" => {
                let text = waiting(&"the pods on stdin", || file::stdin(deadline));
                From::Stdin(text.context("failed to read the pods")?)
            }
            Source::File(path) => From::File(path),
            Source::Api {
                options,
                namespaces,
                labels,
                fields,
            } => {
                let api = Box::new(Api::open(options, deadline)?);
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

    /// Where the pods are listed, in words.
    pub(crate) fn place(&self) -> String {
        match &self.from {
            From::File(path) => format!("the pods in `{path}`"),
            From::Stdin(_) => "the pods on stdin".to_owned(),
            From::Api { api, .. } => format!("the pods of {}", redacted(api.server())),
        }
    }

    /// The cluster's own name, for the scope.
    #[must_use]
    pub(crate) fn cluster(&self) -> String {
        match &self.from {
            From::File(_) | From::Stdin(_) => "file".to_owned(),
            From::Api { api, .. } => api.cluster(),
        }
    }

    /// Lists all pods, completely. `look` sees each before it is reduced to what a plan needs.
    ///
    /// # Errors
    /// A list that failed, or was not whole; [`NamespacesMix`].
    pub(crate) fn list(&mut self, look: &mut dyn FnMut(&Pod<'_>)) -> anyhow::Result<Lists> {
        let mut namespace = Rc::<str>::default();
        let mut backend = None::<BackendId>;
        let mut map = |pod: Pod<'_>| {
            look(&pod);
            let mut seen = self.mapping.map(&pod);
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
        let read = match &mut self.from {
            From::File(path) => file::read(path, &mut map),
            From::Stdin(text) => file::decode("stdin", text, &mut map),
            From::Api {
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

/// Makes one of two values that are the same, as a copy costs nothing; else keeps the new one for the next.
fn share<T: Clone + PartialEq>(last: &mut T, new: &mut T) {
    if new == last {
        new.clone_from(last);
    } else {
        last.clone_from(new);
    }
}
