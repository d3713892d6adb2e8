//! Keeps an external load balancer pointed at the live pods of a Kubernetes cluster.
//!
//! One run lists the store, then the pods, decides, and prints or applies: see `run.rs`.

pub(crate) mod apply;
pub(crate) mod config;
pub(crate) mod exit;
pub(crate) mod files;
pub(crate) mod kube;
pub(crate) mod layout;
pub(crate) mod logging;
pub(crate) mod look;
pub(crate) mod metrics;
pub(crate) mod model;
pub(crate) mod net;
pub(crate) mod reconcile;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod signals;
pub(crate) mod store;
pub(crate) mod text;
pub(crate) mod waiting;

/// What the program itself, its tests, benches and fuzz targets use. Nothing here is an interface for others.
#[doc(hidden)]
pub mod internals {
    pub mod config {
        pub use crate::config::{Cli, LogFormat, Look, parse, unread_variables};
    }
    pub use crate::exit::Exit;
    pub mod kube {
        pub mod file {
            pub use crate::kube::file::read;
        }
        pub use crate::kube::{
            Api, NamespacesMix, Options, Selection, check_kubeconfig, pods_from_json,
            pods_from_protobuf,
        };
    }
    pub mod layout {
        pub use crate::layout::{
            Entry, Fault, Layout, ObserveError, Observed, Options, Undefined, open,
        };
    }
    pub mod look {
        pub use crate::look::look;
    }
    pub mod logging {
        pub use crate::logging::{line, start};
    }
    pub mod metrics {
        pub use crate::metrics::{Targets, write};
    }
    pub mod model {
        pub use crate::model::{
            Author, Cluster, ContainerPort, Expect, Guard, Host, KeyValue, Op, Phase, Pod, PodName,
            Reads, Scheme, Scope, ServerUrl, Snapshot, Texts, Transaction,
        };
    }
    pub mod net {
        pub mod deadline {
            pub use crate::net::deadline::Deadline;
        }
        pub mod http {
            pub use crate::net::http::{Options, agent};
        }
        pub mod tls {
            pub use crate::net::tls::Tls;
        }
    }
    pub mod reconcile {
        pub mod evidence {
            pub use crate::reconcile::evidence::{Coverage, List, Lists};
        }
        pub mod map {
            pub use crate::reconcile::map::{IpFamily, Mapping, PortRef, SeenPod, Want};
        }
        pub mod plan {
            pub use crate::reconcile::plan::{Action, Adopt, Change, Plan, Rules};
            pub use crate::reconcile::planner::plan;
        }
        pub mod template {
            pub use crate::reconcile::template::Template;
        }
    }
    pub mod report {
        pub mod diff {
            pub use crate::report::diff::{applied, dry_run, one_line};
        }
        pub mod json {
            pub use crate::report::json::print;
        }
        pub mod etcdctl {
            pub use crate::report::etcdctl::{Access, Api};
        }
        pub mod metrics {
            pub use crate::report::metrics::{Run, render};
        }
        pub use crate::report::{Etcdctl, Style, notes};
    }
    pub mod run {
        pub use crate::run::run;
    }
    pub mod signals {
        pub use crate::signals::Signals;
    }
    pub mod store {
        pub mod endpoints {
            pub use crate::store::endpoints::Options;
        }
        pub mod etcd2 {
            pub use crate::store::etcd2::Etcd2;
        }
        pub mod etcd3 {
            pub use crate::store::etcd3::Etcd3;
        }
        pub mod file {
            pub use crate::store::file::File;
        }
        pub use crate::store::{Applied, ApplyError, Store};
    }
    pub mod text {
        pub use crate::text::{escaped, redacted};
    }
}
