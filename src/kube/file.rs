//! Pods from a file or stdin, as `kubectl get pods -o json` prints them.

use std::fs;
use std::io::{self, Read as _};

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire::{ListMeta, json};
use crate::model::Pod;
use crate::net::deadline::Deadline;
use crate::text;
use crate::waiting::in_background;

/// The pods of a file.
#[derive(Debug)]
pub struct Pods<T> {
    /// The pods, mapped.
    pub pods: Vec<T>,
    /// Whether these are all pods of their namespaces: one `Pod` is not, nor is a kubelet's list.
    pub complete: bool,
}

/// Reads a `List`, a `PodList` or one `Pod` from the path `source`, and passes each pod to `map`.
///
/// # Errors
/// When it cannot be read, is empty or of another kind, or is an incomplete list.
pub fn read<T>(source: &str, map: &mut dyn FnMut(Pod<'_>) -> T) -> anyhow::Result<Pods<T>> {
    let text = fs::read(source).with_context(|| format!("failed to read `{source}`"))?;
    decode(source, &text, map)
}

/// Reads all of stdin within the run's time. The second call gets nothing.
///
/// # Errors
/// When stdin cannot be read, or does not end in time.
pub(super) fn stdin(deadline: Deadline) -> anyhow::Result<Vec<u8>> {
    let bytes = in_background(|| {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    });
    match bytes.recv_timeout(deadline.remaining()?) {
        Ok(read) => read.context("failed to read stdin"),
        Err(_) => Err(anyhow::Error::new(deadline.time_up()).context("stdin did not end")),
    }
}

/// Decodes what was read from `name`: see [`read`].
pub(super) fn decode<T>(
    name: &str,
    bytes: &[u8],
    map: &mut dyn FnMut(Pod<'_>) -> T,
) -> anyhow::Result<Pods<T>> {
    text::decoded(bytes)
        .context("it is neither UTF-8 nor UTF-16")
        .and_then(|text| parse(&text, map))
        .with_context(|| format!("`{name}` holds no pods"))
}

fn parse<T>(text: &str, map: &mut dyn FnMut(Pod<'_>) -> T) -> anyhow::Result<Pods<T>> {
    #[derive(Deserialize)]
    struct Head<'t> {
        #[serde(default)]
        kind: String,
        #[serde(default)]
        metadata: Option<&'t RawValue>,
        #[serde(borrow, default)]
        items: Option<Vec<&'t RawValue>>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        kind: String,
    }
    if text.trim().is_empty() {
        bail!("it is empty");
    }
    match text.trim_start().as_bytes()[0] {
        b'{' => {}
        b'[' => bail!("it is an array, not a `List`: use `kubectl get pods -o json` as it is"),
        _ => bail!("it is not JSON: use `-o json`"),
    }
    let complete;
    let head = serde_json::from_str::<Head>(text).map_err(|error| anyhow!("{error}"))?;
    let pods = match (head.kind.as_str(), head.items) {
        ("Pod", _) => {
            complete = false;
            vec![text]
        }
        ("List" | "PodList", Some(items)) => {
            let meta = head
                .metadata
                .map(|meta| serde_json::from_str::<ListMeta>(meta.get()));
            let meta = meta.transpose()?;
            // A kubelet's list has no resourceVersion: it shows the pods of one node.
            complete = head.kind == "List"
                || meta
                    .as_ref()
                    .is_some_and(|meta| !meta.resource_version.is_empty());
            if meta.is_some_and(|meta| !meta.r#continue.is_empty()) {
                bail!("it is one page of a list: its `continue` says that there are more pods");
            }
            items.into_iter().map(RawValue::get).collect()
        }
        ("List" | "PodList", None) => bail!("its list has no `items`"),
        (kind, _) => bail!("it is a `{kind}`, not a `List`, `PodList` or `Pod`"),
    };
    let pod = |text: &str| {
        let Item { kind } = serde_json::from_str(text)?;
        // The items of a `PodList` need no kind.
        if kind != "Pod" && !(kind.is_empty() && head.kind == "PodList") {
            bail!("its list has a `{kind}` in it");
        }
        json::pod(text)?.convert().map(&mut *map)
    };
    let pods = pods.into_iter().map(pod).collect::<anyhow::Result<_>>()?;
    Ok(Pods { pods, complete })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        let parsed = parse(text, &mut |pod| pod.name.into_owned());
        parsed
            .map(|pods| pods.pods)
            .map_err(|error| error.to_string())
    }

    const POD: &str = r#"{"kind":"Pod","metadata":{"name":"a","namespace":"n","labels":null}}"#;

    #[test]
    fn lists_and_pods() {
        assert_eq!(names(POD), Ok(vec!["a".to_owned()]));
        let list = |kind: &str| format!(r#"{{"kind":"{kind}","items":[{POD},{POD}]}}"#);
        assert_eq!(names(&list("List")).map(|names| names.len()), Ok(2));
        assert_eq!(names(&list("PodList")).map(|names| names.len()), Ok(2));
        assert_eq!(names(r#"{"kind":"List","items":[]}"#), Ok(vec![]));
    }

    #[test]
    fn incomplete_lists_are_errors() {
        for bad in [
            "",
            " \n",
            "null",
            "[]",
            r#"{"kind":"List"}"#,
            r#"{"kind":"ServiceList","items":[]}"#,
            r#"{"kind":"PodList","metadata":{"continue":"x"},"items":[]}"#,
            r#"{"kind":"List","items":[{"kind":"Service","metadata":{"name":"a","namespace":"b"}}]}"#,
            r#"{"kind":"List","items":[{"kind":"Pod","metadata":{"name":"a"}}]}"#,
            &format!("{POD}{POD}"),
            &POD[..POD.len() - 1],
        ] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }
}
