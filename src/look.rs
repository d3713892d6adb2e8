//! The read-only commands: `status` shows the store, `explain` follows one pod.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail};

use crate::config::{Config, Look};
use crate::exit::Exit;
use crate::kube::Pods;
use crate::model::{Pod, PodName};
use crate::net::deadline::Deadline;
use crate::report::Reporter;
use crate::report::explain::{self, Run};
use crate::report::status;
use crate::run::{list_and_decide, observe};
use crate::store;
use crate::text::escaped;

/// Runs a read-only command.
///
/// # Errors
/// A listing that failed, or a backend or pod that does not exist.
pub fn look(config: &Config, look: &Look, reporter: &mut Reporter) -> anyhow::Result<Exit> {
    match look {
        Look::Status { backends } => show_status(config, backends, reporter),
        Look::Explain { pod } => explain_pod(config, pod, reporter),
    }
}

fn show_status(
    config: &Config,
    backends: &[String],
    reporter: &mut Reporter,
) -> anyhow::Result<Exit> {
    let deadline = Deadline::start(config.timeout, config.request_timeout);
    let mut store = store::open(&config.store, true, deadline)?;
    let observed = observe(store.as_mut(), &*config.layout)?;
    let missing = status::missing(&observed, backends);
    if !missing.is_empty() {
        let missing = missing.iter().map(|id| format!("`{}`", escaped(id)));
        let missing = missing.collect::<Vec<_>>().join(", ");
        bail!(
            "the store has no backend {missing} under `{}`",
            observed.prefix
        );
    }
    reporter.status(&observed, backends)?;
    Ok(Exit::Done)
}

/// Lists both sides as a dry run does.
fn explain_pod(config: &Config, wanted: &str, reporter: &mut Reporter) -> anyhow::Result<Exit> {
    let deadline = Deadline::start(config.timeout, config.request_timeout);
    let mut store = store::open(&config.store, true, deadline)?;
    let mut pods = Pods::open(&config.source, &config.mapping, deadline)?;
    let rules = config.rules(pods.cluster());
    let (namespace, name) =
        PodName::split(wanted).map_or((None, wanted), |(namespace, name)| (Some(namespace), name));
    // By name: a list that starts over shows its pods twice.
    let mut found = BTreeMap::new();
    let mut look = |pod: &Pod<'_>| {
        if *pod.name == *name && namespace.is_none_or(|wanted| *pod.namespace == *wanted) {
            let key = (pod.namespace.to_string(), pod.name.to_string());
            found.insert(key, pod.clone().into_owned());
        }
    };
    let observed = observe(store.as_mut(), &*config.layout)?;
    let (lists, plan) = list_and_decide(&observed, &mut pods, &rules, config, &mut look)?;
    let found = found.into_values().collect::<Vec<_>>();
    let pod = match found.as_slice() {
        [pod] => pod,
        [] => bail!(
            "no pod `{}` among the {} that were listed: completed ones are not, nor those of other namespaces \
             (`-n`, `-A`) or outside the selectors",
            escaped(wanted),
            lists.pods().count()
        ),
        several => {
            let names = several.iter();
            let names = names.map(|pod| format!("`{}/{}`", pod.namespace, pod.name));
            let names = names.collect::<Vec<_>>().join(", ");
            bail!("several pods have that name: give one of {names}");
        }
    };
    let is_it = |name: &PodName| *name.namespace == *pod.namespace && *name.name == *pod.name;
    let seen = lists.pods().find(|seen| is_it(&seen.name));
    let seen = seen.ok_or_else(|| anyhow!("pod `{}` was listed in part", escaped(wanted)))?;
    let run = Run {
        observed: &observed,
        plan: &plan,
        rules: &rules,
        mapping: &config.mapping,
        layout: &*config.layout,
    };
    let explained = explain::explain(&run, pod, seen);
    reporter.explained(&explained)?;
    Ok(if explained.published {
        Exit::Done
    } else {
        Exit::Unpublished
    })
}
