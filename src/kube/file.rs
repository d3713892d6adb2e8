//! Pods from a file: what `kubectl get pods -o json` prints.

use std::fs;
use std::io::{self, Read as _};

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire::{self, ListMeta};
use crate::model::Pod;

/// Reads a `List`, a `PodList` or one `Pod`, all of it. `source` is a path, or `-` for stdin.
///
/// # Errors
/// When it cannot be read, is empty, is something else, or is only a part of a list.
pub fn read<T>(source: &str, map: &mut dyn FnMut(Pod<'_>) -> T) -> anyhow::Result<Vec<T>> {
    let (name, text) = if source == "-" {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .context("failed to read stdin")?;
        ("stdin", text)
    } else {
        (
            source,
            fs::read_to_string(source).with_context(|| format!("failed to read `{source}`"))?,
        )
    };
    parse(&text, map).with_context(|| format!("`{name}` holds no pods"))
}

fn parse<T>(text: &str, map: &mut dyn FnMut(Pod<'_>) -> T) -> anyhow::Result<Vec<T>> {
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
    let head = serde_json::from_str::<Head>(text).map_err(|error| anyhow!("{error}"))?;
    let pods = match (head.kind.as_str(), head.items) {
        ("Pod", _) => vec![text],
        ("List" | "PodList", Some(items)) => {
            let meta = head
                .metadata
                .map(|meta| serde_json::from_str::<ListMeta>(meta.get()));
            if meta
                .transpose()?
                .is_some_and(|meta| !meta.r#continue.is_empty())
            {
                bail!("it is one page of a list: its `continue` says that there are more pods");
            }
            items.into_iter().map(RawValue::get).collect()
        }
        ("List" | "PodList", None) => bail!("its list has no `items`"),
        (kind, _) => bail!("it is a `{kind}`, not a `List`, `PodList` or `Pod`"),
    };
    let pod = |text: &str| {
        let Item { kind } = serde_json::from_str(text)?;
        // The items of a `PodList` need not say what they are.
        if kind != "Pod" && !(kind.is_empty() && head.kind == "PodList") {
            bail!("its list has a `{kind}` in it");
        }
        wire::json_pod(text)?.convert().map(&mut *map)
    };
    pods.into_iter().map(pod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        parse(text, &mut |pod| pod.name.into_owned()).map_err(|error| error.to_string())
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
    fn what_is_no_whole_list_is_refused() {
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
