//! Commands to paste: `etcdctl`, for the store of this run.

use crate::text::quoted;

/// A version of etcd's API.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Version 3
    #[value(name = "3")]
    V3,
    /// Version 2
    #[value(name = "2")]
    V2,
}

/// How a suggested command reaches this run's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcdctl {
    /// `None` where the store is a file: there is no command then.
    api: Option<Api>,
    /// Its options, quoted for `sh`, each with a space in front.
    options: String,
}

/// For a store that is a file.
pub(crate) const NO_ETCDCTL: Etcdctl = Etcdctl {
    api: None,
    options: String::new(),
};

/// What `etcdctl` needs to reach a store; `None` where it has an environment variable for it already.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Endpoints, with commas between.
    pub endpoints: Option<String>,
    /// File of CA certificates.
    pub cacert: Option<String>,
    /// File of the client certificate.
    pub cert: Option<String>,
    /// File of its key.
    pub key: Option<String>,
    /// User; `etcdctl` asks for the password.
    pub user: Option<String>,
}

impl Etcdctl {
    /// For a store with this API.
    #[must_use]
    pub fn new(api: Api, access: &Access) -> Self {
        let Access {
            endpoints,
            cacert,
            cert,
            key,
            user,
        } = access;
        let values = [endpoints, cacert, cert, key, user];
        let names = match api {
            Api::V3 => ["endpoints", "cacert", "cert", "key", "user"],
            Api::V2 => ["endpoints", "ca-file", "cert-file", "key-file", "username"],
        };
        let options = names.iter().zip(values).filter_map(|(name, value)| {
            let value = value.as_ref()?;
            // A command with a control character in it is not printed.
            let value = (!value.contains(char::is_control)).then(|| quoted(value))?;
            Some(format!(" --{name}={value}"))
        });
        Self {
            api: Some(api),
            options: options.collect(),
        }
    }

    /// The API of this run's etcd, if it has one.
    #[must_use]
    pub fn api(&self) -> Option<Api> {
        self.api
    }

    /// The command that sets a key; for a file, the line that belongs in it. `None` for a key that is not
    /// safe to paste, and for a value that `etcdctl` would take for a flag.
    #[must_use]
    pub fn put(&self, key: &str, value: &str) -> Option<String> {
        let Some(api) = self.api else {
            let text = |text| serde_json::to_string(text).ok();
            plain(key)?;
            return Some(format!("{}: {}", text(key)?, text(value)?));
        };
        if value.starts_with('-') {
            return None;
        }
        let arguments = format!("{} {}", plain(key)?, quoted(value));
        Some(self.command(api, "put", "set", &arguments))
    }

    /// The command that removes a key. `None` for a file, and for a key that is not safe to paste.
    #[must_use]
    pub fn del(&self, key: &str) -> Option<String> {
        let key = plain(key)?;
        Some(self.command(self.api?, "del", "rm", &key))
    }

    /// The command that removes a directory of etcd v2.
    #[must_use]
    pub fn remove_directory(&self, key: &str, empty: bool) -> Option<String> {
        let key = plain(key)?;
        let verb = if empty { "rmdir" } else { "rm --recursive" };
        (self.api? == Api::V2).then(|| self.command(Api::V2, verb, verb, &key))
    }

    fn command(&self, api: Api, v3: &str, v2: &str, arguments: &str) -> String {
        let options = &self.options;
        match api {
            Api::V3 => format!("etcdctl {v3} {arguments}{options}"),
            // Its options come before the command.
            Api::V2 => format!("ETCDCTL_API=2 etcdctl{options} {v2} {arguments}"),
        }
    }
}

/// A key in quotes, if it has no other characters than ids and prefixes.
fn plain(key: &str) -> Option<String> {
    let harmless = |c: u8| c.is_ascii_alphanumeric() || b"/._:[]-".contains(&c);
    key.bytes().all(harmless).then(|| quoted(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggested_commands_are_harmless() {
        let [v3, v2] = [Api::V3, Api::V2].map(|api| Etcdctl::new(api, &Access::default()));
        let command = v3.del("/vulcand/backends/a/servers/[fd00::1]:80");
        assert_eq!(
            command.as_deref(),
            Some("etcdctl del '/vulcand/backends/a/servers/[fd00::1]:80'")
        );
        for key in ["/a'; rm -rf $HOME #", "/a b", "/a\n", "/$(x)", "/é"] {
            for etcdctl in [&v3, &v2, &NO_ETCDCTL] {
                assert_eq!(etcdctl.del(key), None, "{key}");
                assert_eq!(etcdctl.put(key, "x"), None, "{key}");
                assert_eq!(etcdctl.remove_directory(key, true), None, "{key}");
            }
        }
        assert_eq!(v3.put("traefik/x", "--prefix"), None);
        let command = v2.put("/a/backend", "it's");
        assert_eq!(
            command.as_deref(),
            Some(r"ETCDCTL_API=2 etcdctl set '/a/backend' 'it'\''s'")
        );
    }

    #[test]
    fn commands_reach_the_store_of_the_run() {
        let access = Access {
            endpoints: Some("https://etcd-1:2379,https://etcd-2:2379".to_owned()),
            cacert: Some("/etc/it's/ca.pem".to_owned()),
            cert: None,
            key: Some("a\nb".to_owned()),
            user: Some("root".to_owned()),
        };
        assert_eq!(
            Etcdctl::new(Api::V3, &access).put("/a", "b").as_deref(),
            Some(
                r"etcdctl put '/a' 'b' --endpoints='https://etcd-1:2379,https://etcd-2:2379' --cacert='/etc/it'\''s/ca.pem' --user='root'"
            )
        );
        assert_eq!(
            Etcdctl::new(Api::V2, &access)
                .remove_directory("/a", true)
                .as_deref(),
            Some(
                r"ETCDCTL_API=2 etcdctl --endpoints='https://etcd-1:2379,https://etcd-2:2379' --ca-file='/etc/it'\''s/ca.pem' --username='root' rmdir '/a'"
            )
        );
        assert_eq!(NO_ETCDCTL.del("/a"), None);
        assert_eq!(NO_ETCDCTL.put("/a", "\"").as_deref(), Some(r#""/a": "\"""#));
    }
}
