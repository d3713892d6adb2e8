//! The real Traefik on a real etcd, HTTP servers behind it, and clients that send requests all the time.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::etcd::{Etcd, agent, free_ports, poll, test_tools};

/// A Traefik that reads its services from an etcd. Its process is killed when this is dropped.
pub struct Traefik {
    child: Child,
    folder: tempfile::TempDir,
    api: u16,
    web: u16,
}

impl Traefik {
    /// Starts one, and waits until it answers.
    pub fn start(etcd: &Etcd) -> Self {
        Self::with_file(etcd, "")
    }

    /// The same, with further dynamic configuration (YAML) in a file.
    pub fn with_file(etcd: &Etcd, dynamic: &str) -> Self {
        // Another process may take a port between its choice and its use.
        let tries = (0..3).find_map(|_| Self::try_start(etcd, dynamic));
        tries.expect("Traefik starts; run tests/setup")
    }

    fn try_start(etcd: &Etcd, dynamic: &str) -> Option<Self> {
        let [api, web] = free_ports();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = File::create(folder.path().join("log")).expect("the folder can be written");
        let file = folder.path().join("dynamic.yml");
        fs::write(&file, dynamic).expect("the folder can be written");
        let child = Command::new(test_tools().join("bin/traefik"))
            .args([
                &format!("--providers.etcd.endpoints=127.0.0.1:{}", etcd.port()),
                "--providers.etcd.rootkey=traefik",
                "--providers.providersthrottleduration=0s",
                "--api.insecure=true",
                "--ping=true",
                &format!("--entrypoints.web.address=127.0.0.1:{web}"),
                &format!("--entrypoints.traefik.address=127.0.0.1:{api}"),
                "--global.checknewversion=false",
                "--global.sendanonymoususage=false",
                "--log.nocolor=true",
                &format!("--providers.file.filename={}", file.display()),
            ])
            .current_dir(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("Traefik starts; run tests/setup");
        let mut traefik = Self {
            child,
            folder,
            api,
            web,
        };
        let ready = poll("Traefik to answer", || {
            if traefik.get("ping").is_some() {
                return Some(true);
            }
            let ended = traefik.child.try_wait().expect("its state is known");
            ended.map(|_| false)
        });
        ready.then_some(traefik)
    }

    fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{}/{path}", self.api);
        let mut answer = agent(Duration::from_secs(5)).get(&url).call().ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        (answer.status() == 200).then_some(text)
    }

    /// A service of its etcd provider, or `None` if there is no such service.
    pub fn service(&self, name: &str) -> Option<Value> {
        let text = self.get(&format!("api/http/services/{name}@etcd"))?;
        Some(serde_json::from_str(&text).expect("JSON"))
    }

    /// The URLs of a service's servers; empty if there is no such service.
    pub fn servers(&self, name: &str) -> BTreeSet<String> {
        let service = self.service(name).unwrap_or_default();
        let servers = service["loadBalancer"]["servers"].as_array();
        let servers = servers.into_iter().flatten();
        let urls = servers.filter_map(|server| server["url"].as_str());
        urls.map(str::to_owned).collect()
    }

    /// Polls until a service has exactly these servers.
    pub fn wait_for(&self, name: &str, urls: &BTreeSet<String>) {
        poll(&format!("Traefik to serve {urls:?}"), || {
            (self.servers(name) == *urls).then_some(())
        });
    }

    /// The lines of its log that report unreadable keys in etcd.
    pub fn provider_errors(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("log")).expect("a log");
        let errors = log.lines().filter(|line| line.contains("Provider error"));
        errors.map(str::to_owned).collect()
    }

    /// The port of its entry point.
    pub fn web(&self) -> u16 {
        self.web
    }
}

impl Drop for Traefik {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP server with its own address, like a pod. It counts the requests that arrive after its removal.
pub struct Site {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    state: Arc<SiteState>,
}

#[derive(Default)]
struct SiteState {
    closed: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    served: AtomicUsize,
    removed: AtomicBool,
    late: AtomicUsize,
}

impl Site {
    /// Listens on an address of the loopback network, `127.1.<test>.<number>`.
    pub fn start(test: u8, number: u8) -> Self {
        /// The port of each test's first site. Later sites of the test use the same port, like pods of one backend.
        static PORTS: Mutex<BTreeMap<u8, u16>> = Mutex::new(BTreeMap::new());
        let ip = IpAddr::from([127, 1, test, number]);
        let mut ports = PORTS.lock().expect("no panic");
        let same = ports.get(&test).copied().unwrap_or(0);
        let listener = TcpListener::bind((ip, same)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        ports.insert(test, port);
        drop(ports);
        let state = Arc::new(SiteState::default());
        let shared = Arc::clone(&state);
        // The thread ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.closed.load(Ordering::SeqCst) {
                    return;
                }
                let known = stream.try_clone().expect("a second handle");
                shared.connections.lock().expect("no panic").push(known);
                let state = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &state));
            }
        });
        Self { ip, port, state }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.ip, self.port)
    }

    /// Stops it like a pod that ends: new connections are refused, open ones are closed.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        // A connection wakes the listener, which then closes its port.
        while TcpStream::connect((self.ip, self.port)).is_ok() {}
        for stream in self.state.connections.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How many requests it answered.
    pub fn served(&self) -> usize {
        self.state.served.load(Ordering::SeqCst)
    }

    /// Marks it as removed from the proxy, so that further requests count as late, or as in use again.
    pub fn is_removed(&self, removed: bool) {
        self.state.removed.store(removed, Ordering::SeqCst);
    }

    /// How many requests arrived after its removal.
    pub fn late(&self) -> usize {
        self.state.late.load(Ordering::SeqCst)
    }
}

/// Answers the requests of one connection until the client leaves.
fn answer(mut stream: TcpStream, state: &SiteState) {
    let Ok(reading) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(reading).lines() {
        let Ok(line) = line else { return };
        // The empty line ends a request: none here has a body.
        if line.is_empty() {
            if state.removed.load(Ordering::SeqCst) {
                state.late.fetch_add(1, Ordering::SeqCst);
            }
            state.served.fetch_add(1, Ordering::SeqCst);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// Clients that send requests to an entry point until they are stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Traffic {
    /// Starts some clients.
    pub fn start(port: u16, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let client = || {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let agent = agent(Duration::from_secs(10));
                let url = format!("http://127.0.0.1:{port}/");
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match agent.get(&url).call() {
                        Ok(answer) if answer.status() == 200 => {}
                        Ok(answer) => failed.push(answer.status().to_string()),
                        Err(error) => failed.push(error.to_string()),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        };
        let clients = (0..clients).map(|_| client()).collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    /// Waits until this many more requests are finished.
    pub fn more(&self, requests: usize) {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        poll("requests to be answered", || {
            (self.done.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// How many of this many further requests each site answers.
    pub fn shares<const N: usize>(&self, sites: [&Site; N], requests: usize) -> [usize; N] {
        let before = sites.map(Site::served);
        self.more(requests);
        let after = sites.map(Site::served);
        std::array::from_fn(|n| after[n] - before[n])
    }

    /// Stops the clients. Returns the number of requests, and the errors of those that failed.
    pub fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let ends = self.clients.into_iter().map(JoinHandle::join);
        let failed = ends.flat_map(|end| end.expect("no panic")).collect();
        (self.done.load(Ordering::Relaxed), failed)
    }
}
