//! The stores, each against the real thing.

use crate::support::certs::Authority;
use crate::support::etcd::{Etcd, Settings, VERSIONS};

#[test]
fn harness_starts_etcd() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        etcd.put("a", "1");
        assert_eq!(etcd.value("a").as_deref(), Some("1"));
        etcd.put_v2("/x/y", Some("2"));
        etcd.put_v2("/x/empty", None);
        assert_eq!(etcd.below_v2("/x").len(), 2);
        assert_eq!(etcd.get("a").len(), 1);
        assert_eq!(etcd.revision(), 2);
        let index = etcd.index_v2();
        assert_eq!(etcd.events_v2("/", 1, index).len(), 2);
    }
}

#[test]
fn harness_cluster() {
    for version in VERSIONS {
        let mut members = Etcd::cluster(version, &Settings::default());
        members[0].put("a", "1");
        members[0].kill();
        assert_eq!(members[1].value("a").as_deref(), Some("1"));
        members[0].restart();
        members[1].stop();
        assert_eq!(members[0].value("a").as_deref(), Some("1"));
        members[1].resume();
        members[1].put("b", "1");
    }
}

#[test]
fn harness_tls_and_users() {
    let authority = Authority::new();
    for version in VERSIONS {
        let settings = Settings {
            token_ttl: Some(1),
            ..Settings::mutual(&authority)
        };
        let mut etcd = Etcd::with(version, &settings);
        etcd.put("a", "1");
        etcd.enable_auth();
        etcd.add_user("limited", "secret", "/vulcand/backends/");
        assert_eq!(etcd.value("a").as_deref(), Some("1"));
        assert!(etcd.url().starts_with("https://"));
    }
}
