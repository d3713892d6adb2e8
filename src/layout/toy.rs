//! A third layout, for tests: `x/<backend>/<id>` = `ip:port`. It shows what a new layout takes: a file like
//! this one, and a line in [`super::LAYOUTS`].

use std::borrow::Cow;
use std::rc::Rc;

use super::{
    Definition, Entry, Layout, ObserveError, Observed, Options, Undefined, Unsupported, backend,
};
use crate::model::{Author, Cluster, Mark, ServerUrl, Snapshot};

#[derive(Debug)]
struct Toy;

#[expect(clippy::unnecessary_wraps, reason = "of the type `Open`")]
pub(super) fn open(_: Options) -> Result<Rc<dyn Layout>, Unsupported> {
    Ok(Rc::new(Toy))
}

impl Layout for Toy {
    fn ranges(&self) -> Vec<String> {
        vec!["x/".to_owned()]
    }

    fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        let mut observed = Observed {
            revision: snapshot.revision,
            prefix: "x".to_owned(),
            ..Observed::default()
        };
        for found in snapshot.ranges.into_iter().flatten().flatten() {
            let key = String::from_utf8_lossy(&found.key).into_owned();
            let Some((id, server)) = key["x/".len()..].split_once('/') else {
                continue;
            };
            let backend = backend(&mut observed.backends, id);
            if server == "on" {
                backend.definition = Definition::Valid {
                    key,
                    revision: found.revision,
                };
                continue;
            }
            let value = String::from_utf8_lossy(&found.value);
            let entry = Entry {
                url: ServerUrl::parse(&format!("http://{value}")),
                mark: mark(server),
                fault: None,
                others: Box::default(),
                key: key.as_str().into(),
                value: found.value.into(),
                revision: found.revision,
            };
            backend.servers.insert(server.into(), entry);
        }
        Ok(observed)
    }

    fn range(&self, prefix: &str, backend: &str) -> String {
        format!("{prefix}/{backend}/")
    }

    fn key(&self, prefix: &str, backend: &str, id: &str) -> String {
        format!("{prefix}/{backend}/{id}")
    }

    fn value(&self, url: &ServerUrl, _: &Mark) -> String {
        let url = url.to_string();
        url.split_once("://").expect("a scheme").1.to_owned()
    }

    fn id<'s>(&self, server: &'s str, mark: &Mark) -> Cow<'s, str> {
        let pod = mark.pod.as_deref().unwrap_or_default();
        let Author { owner, scope } = &*mark.author;
        let namespace = &mark.namespace;
        format!("{owner}.{scope}.{namespace}.{pod}.{server}").into()
    }

    fn definition(&self, prefix: &str, backend: &str) -> Vec<(String, String)> {
        vec![(format!("{prefix}/{backend}/on"), String::new())]
    }

    fn undefined(&self) -> Undefined {
        Undefined::Unrouted
    }

    fn definitions(&self, prefix: &str) -> String {
        format!("{prefix}/")
    }

    fn root_option(&self, prefix: &str) -> String {
        format!("--root={prefix}")
    }
}

fn mark(id: &str) -> Option<Mark> {
    let mut parts = id.splitn(5, '.');
    Some(Mark {
        author: Author::shared(parts.next()?, parts.next()?),
        namespace: parts.next()?.into(),
        pod: Some(parts.next()?.into()),
    })
}

mod tests {
    use super::*;
    use crate::model::{Phase, Pod, Scheme, Scope};
    use crate::reconcile::evidence::{Coverage, List, Lists};
    use crate::reconcile::map::{Mapping, PortRef};
    use crate::reconcile::plan::{Action, Rules};
    use crate::reconcile::planner::plan;
    use crate::reconcile::template::Template;
    use crate::{layout, model};

    /// One run: each change in a line.
    fn run(store: &[(&str, &str)], pods: &[u8]) -> Vec<String> {
        let layout = layout::open("toy", Options::default()).expect("the toy");
        let template = |text| Template::parse(text).expect("a template");
        let mapping = Mapping {
            annotation_prefix: "x/".to_owned(),
            backend_labels: vec!["app".to_owned()],
            backend: template("{name}"),
            port: Some(PortRef::Number(80)),
            scheme: Scheme::Http,
            ip_family: None,
            server_id: template("{ip}"),
            layout: Rc::clone(&layout),
        };
        let pods = pods.iter().map(|n| Pod {
            namespace: "shop".into(),
            name: format!("web-{n}").into(),
            labels: [("app", "web")].into_iter().collect(),
            phase: Phase::Running,
            ready: true,
            ips: vec![[10, 0, 0, *n].into()],
            ..Pod::default()
        });
        let lists = Lists {
            lists: vec![List {
                coverage: Coverage::All,
                pods: pods.map(|pod| mapping.map(&pod)).collect(),
            }],
            ..Lists::default()
        };
        let rules = Rules::new("prod", Scope::new(Cluster::parse("c1"), None, None));
        let entries = store.iter().map(|(key, value)| layout::entry(key, value));
        let snapshot = model::Snapshot {
            revision: Some(1),
            ranges: vec![Ok(entries.collect())],
        };
        let observed = layout.observe(snapshot).expect("a store");
        let plan = plan(&observed, &lists, &rules, &*layout).expect("a plan");
        let line = |change: &crate::reconcile::plan::Change| match &change.action {
            Action::Create { after, .. } => format!("+ {} {after}", change.key),
            Action::Update { after, .. } => format!("~ {} {after}", change.key),
            Action::Delete { .. } => format!("- {}", change.key),
        };
        plan.changes.iter().map(line).collect()
    }

    #[test]
    fn the_toy_layout_is_planned() {
        let gone = "x/web/prod.c1.shop.web-9.10.0.0.9";
        let before = [("x/web/on", ""), (gone, "10.0.0.9:80")];
        let changes = run(&before, &[1]);
        let created = "x/web/prod.c1.shop.web-1.10.0.0.1";
        assert_eq!(
            changes,
            [format!("+ {created} 10.0.0.1:80"), format!("- {gone}")]
        );
        let after = [("x/web/on", ""), (created, "10.0.0.1:80")];
        assert_eq!(run(&after, &[1]), [""; 0]);
    }
}
