//! The whole program as a process, against a stand-in API server that serves any number of pods over TLS, and
//! a real etcd on a memory disk. Its costs are compared with those of a bare process that downloads the same
//! pods and entries with the same clients and discards them, and with bare transactions by the same client.
//!
//! `cargo bench --bench run -- 5` does five rounds; `-- serve 10000` or `-- serve 10000 json` only starts the
//! servers, for a profiler: it prints the command line for them, and waits for the end of its input.

#![expect(clippy::print_stdout, reason = "it prints a table")]
#![expect(
    unreachable_pub,
    reason = "modules of one program: nothing is exported"
)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde_json::json;

use pods::{Encoding, Pods};
use support::api::{Api, Listen, Reply, Request};
use support::etcd::Etcd;
use vulcanized::internals::layout;
use vulcanized::internals::model::{Op, Transaction};
use vulcanized::internals::net::deadline::Deadline;
use vulcanized::internals::net::http;
use vulcanized::internals::net::tls::Tls;
use vulcanized::internals::store::{Applied, Store as _, endpoints, etcd3::Etcd3};

#[path = "support/many.rs"]
mod many;
#[path = "support/pods.rs"]
mod pods;
#[path = "../tests/integration/support/mod.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod support;

/// Pods per page, as the program asks for them.
const PAGE: usize = 500;
/// The time the stand-in takes for a page when it is paced: a bare download of 10,000 pods then takes 0.54 s,
/// as measured with a real API server.
const PACE: Duration = Duration::from_micros(24_500);
/// The number of creates in a first run.
const FIRST: usize = 20_000;
/// The number of puts in a bare transaction.
const PUTS: usize = 128;

fn main() {
    steady_memory();
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    match arguments.as_slice() {
        ["--measure", program, arguments @ ..] => measure(program, arguments),
        ["--download", etcd, prefix, url, ca, pages, accept, encoding] => {
            download_entries(etcd, prefix);
            download(url, ca, pages.parse().expect("a number"), accept, encoding);
        }
        ["--puts", url, number] => puts(url, number.parse().expect("a number")),
        ["serve", number, encoding @ ..] => {
            serve(
                number.parse().expect("a number"),
                encoding.first() == Some(&"json"),
            );
        }
        arguments => {
            let rounds = arguments.iter().find_map(|text| text.parse().ok());
            compare(rounds.unwrap_or(5));
        }
    }
}

/// Restarts this program with an allocator that keeps freed memory: the stand-in allocates some MB for each
/// request, and returning them to the kernel can cost more than all the rest.
fn steady_memory() {
    const KEEP: [(&str, &str); 2] = [
        ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
        ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ];
    let first = std::env::args().nth(1).unwrap_or_default();
    let measured = ["--measure", "--download", "--puts"].contains(&first.as_str());
    let is_set = |(name, _): &(&str, &str)| std::env::var_os(name).is_some();
    if measured || KEEP.iter().all(is_set) {
        return;
    }
    let own = std::env::current_exe().expect("this program");
    let error = Command::new(own)
        .args(std::env::args_os().skip(1))
        .envs(KEEP)
        .exec();
    panic!("it cannot be started over: {error}");
}

/// Runs a program and prints its cost: microseconds by the clock, in user mode and in the kernel, and peak
/// memory in KiB. In a process of its own, because the peak includes that of a large parent.
fn measure(program: &str, arguments: &[&str]) {
    let start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .expect("it starts");
    let wall = start.elapsed();
    assert!(status.success(), "{program} {arguments:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    println!(
        "{} {} {} {}",
        wall.as_micros(),
        usage.user_time().num_microseconds(),
        usage.system_time().num_microseconds(),
        usage.max_rss()
    );
}

/// Downloads the pages of a list as the program does, and discards them.
fn download(url: &str, ca: &str, pages: usize, accept: &str, encoding: &str) {
    let tls = Tls {
        ca: Some(std::fs::read(ca).expect("a CA")),
        ..Tls::default()
    };
    let agent = http::agent(http::Options {
        tls: Some(tls.client(&["http/1.1"]).expect("TLS")),
        server_name: None,
        proxy: None,
        proxy_ca: None,
        gzip: encoding == "gzip",
    })
    .expect("an agent");
    for page in 0..pages {
        let start = page * PAGE;
        let request = agent
            .get(format!("{url}/api/v1/pods?limit={PAGE}&continue={start}"))
            .header("Accept", accept);
        let mut response = request.call().expect("an answer");
        let body = response.body_mut().as_reader();
        io::copy(&mut { body }, &mut io::sink()).expect("a whole answer");
    }
}

/// Lists the program's ranges of etcd, and discards them.
fn download_entries(url: &str, prefix: &str) {
    let options = layout::Options {
        prefix: Some(prefix.to_owned()),
        etcd_v2: false,
    };
    let layout = layout::open("vulcand", options).expect("a layout");
    let ranges = layout.ranges();
    let ranges = ranges.iter().map(String::as_str).collect::<Vec<_>>();
    etcd(url).list(&ranges).expect("a whole answer");
}

fn etcd(url: &str) -> Etcd3 {
    let options = endpoints::Options {
        endpoints: vec![url.to_owned()],
        tls: Tls::default(),
        user: None,
        dial_timeout: Duration::MAX,
    };
    let minute = Duration::from_mins(1);
    Etcd3::open(options, Deadline::start(minute, minute)).expect("etcd")
}

/// Writes `number` keys as the program does, but without guards.
fn puts(url: &str, number: usize) {
    let mut store = etcd(url);
    let ops = (0..number).map(|number| Op::Put {
        key: format!("/bare/backends/n0000.a00.svc/servers/10.100.{number:07}"),
        value: format!(
            r#"{{"URL":"http://10.100.{number:07}:8080","Owner":"bench","Scope":"bench","Pod":"n0000/api-thjqdqktds-{number:05}"}}"#
        ),
    });
    let ops = ops.collect::<Vec<_>>();
    for ops in ops.chunks(PUTS) {
        let transaction = Transaction {
            unchanged: Vec::new(),
            guards: Vec::new(),
            ops: ops.to_vec(),
        };
        let applied = store.apply(&transaction).expect("an answer");
        assert_eq!(applied, Applied::Whole);
    }
}

/// The state of the stand-in API server.
struct Served {
    pods: Pods,
    /// The number of pods.
    number: AtomicUsize,
    /// How many times one pod in a hundred was replaced.
    churned: AtomicUsize,
    /// Whether it answers in JSON only.
    json: AtomicBool,
    /// Whether it takes as long for a page as a real server.
    paced: AtomicBool,
    /// A cache of compressed pages: compressing costs more than all the rest.
    packed: Mutex<HashMap<(usize, bool, usize), Vec<u8>>>,
}

impl Served {
    fn reply(&self, request: &Request) -> Reply {
        let begin = Instant::now();
        let reply = self.page(request);
        if self.paced.load(Ordering::Relaxed) {
            // Not a wait for anything: a slow answer is wanted.
            thread::sleep(PACE.saturating_sub(begin.elapsed()));
        }
        reply
    }

    fn page(&self, request: &Request) -> Reply {
        let number = self.number.load(Ordering::Relaxed);
        let churned = self.churned.load(Ordering::Relaxed);
        let start = request.query.get("continue");
        let start = start.map_or(0, |token| token.parse().expect("a token"));
        let header = |name: &str, word: &str| {
            let value = request.headers.get(name);
            value.is_some_and(|value| value.contains(word))
        };
        let json = self.json.load(Ordering::Relaxed) || !header("accept", "protobuf");
        let (encoding, kind) = if json {
            (Encoding::Json, "application/json")
        } else {
            (Encoding::Protobuf, "application/vnd.kubernetes.protobuf")
        };
        let end = number.min(start + PAGE);
        let page = || {
            // A pod that is replaced comes back under another number.
            let pods = (start..end).map(|pod| pod + number * ((churned + 99 - pod % 100) / 100));
            self.pods
                .page(encoding, pods, (end < number).then_some(end))
        };
        if !header("accept-encoding", "gzip") {
            return Reply::new(200, kind, page());
        }
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let body = packed.entry((number, json, start)).or_insert_with(|| {
            // The API server's level of compression.
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
            io::Write::write_all(&mut packer, &page()).expect("memory");
            packer.finish().expect("memory")
        });
        Reply::new(200, kind, body.clone()).header("Content-Encoding", "gzip")
    }
}

/// The cost of one process.
#[derive(Clone, Copy)]
struct Cost {
    /// Seconds.
    wall: f64,
    user: f64,
    sys: f64,
    /// MiB.
    peak: f64,
}

impl Cost {
    fn cpu(self) -> f64 {
        self.user + self.sys
    }
}

/// All servers, and the measurements.
struct Bench {
    served: Arc<Served>,
    api: Api,
    /// The same pods over plain HTTP.
    #[expect(dead_code, reason = "it ends when it is dropped")]
    plain: Api,
    etcd: Etcd,
    folder: tempfile::TempDir,
    costs: BTreeMap<&'static str, Vec<Cost>>,
}

/// The media types that a client asks for.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf, application/json";
const JSON: &str = "application/json";

impl Bench {
    fn start() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            // It cannot fail: this is the first use of a temporary folder.
            let _ = tempfile::env::override_temp_dir(memory);
        }
        let served = Arc::new(Served {
            pods: Pods::recorded(),
            number: AtomicUsize::new(0),
            churned: AtomicUsize::new(0),
            json: AtomicBool::new(false),
            paced: AtomicBool::new(false),
            packed: Mutex::default(),
        });
        let serve = |hosts| {
            let served = Arc::clone(&served);
            let listen = Listen {
                hosts,
                ..Listen::default()
            };
            Api::listen(&listen, move |request, _| served.reply(request))
        };
        let (api, plain) = (serve(Some(&["127.0.0.1"][..])), serve(None));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &[u8]| {
            std::fs::write(folder.path().join(name), text).expect("it is written");
        };
        let kubeconfig = |api: &Api, fields| {
            let file = api.kubeconfig(&fields, &json!({}));
            std::fs::read(file.path()).expect("it was written")
        };
        write("ca", api.authority().pem.as_bytes());
        write(
            "identity",
            &kubeconfig(&api, json!({ "disable-compression": true })),
        );
        write("gzip", &kubeconfig(&api, json!({})));
        write("plain", &kubeconfig(&plain, json!({})));
        Self {
            served,
            api,
            plain,
            etcd: Etcd::start(),
            folder,
            costs: BTreeMap::new(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn serve(&self, number: usize) {
        self.served.number.store(number, Ordering::Relaxed);
        self.served.json.store(false, Ordering::Relaxed);
    }

    /// Runs a process, and records its cost under `name`.
    fn run(&mut self, name: &'static str, program: &str, arguments: &[&str]) -> Cost {
        let own = std::env::current_exe().expect("this program");
        let output = Command::new(own)
            .env_clear()
            .arg("--measure")
            .arg(program)
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{name} failed");
        let text = String::from_utf8(output.stdout).expect("numbers");
        let numbers = text.split_whitespace();
        let numbers = numbers.map(|number| number.parse::<f64>().expect("a number"));
        let [wall, user, sys, peak] = numbers.collect::<Vec<_>>()[..] else {
            panic!("four numbers");
        };
        let cost = Cost {
            wall: wall / 1e6,
            user: user / 1e6,
            sys: sys / 1e6,
            peak: peak / 1024.0,
        };
        self.costs.entry(name).or_default().push(cost);
        cost
    }

    /// The arguments of a run on all pods that are served, and the keys under one prefix.
    fn arguments(&self, kubeconfig: &str, prefix: &str) -> [String; 9] {
        [
            "--owner=bench".to_owned(),
            "--cluster=bench".to_owned(),
            "-A".to_owned(),
            "-o=summary".to_owned(),
            "--backend={namespace}.{name}.svc".to_owned(),
            "--create-backends".to_owned(),
            format!("--kubeconfig={}", self.path(kubeconfig)),
            format!("--etcd={}", self.etcd.url()),
            format!("--prefix={prefix}"),
        ]
    }

    /// Runs the program.
    fn program(&mut self, name: &'static str, kubeconfig: &str, prefix: &str, more: &[&str]) {
        let arguments = self.arguments(kubeconfig, prefix);
        let arguments = arguments.iter().map(String::as_str);
        let arguments = arguments.chain(more.iter().copied()).collect::<Vec<_>>();
        self.run(name, env!("CARGO_BIN_EXE_vulcanized"), &arguments);
    }

    fn download(
        &mut self,
        name: &'static str,
        (number, prefix): (usize, &str),
        accept: &str,
        encoding: &str,
    ) {
        let own = std::env::current_exe().expect("this program");
        let own = own.display().to_string();
        let (etcd, url, ca) = (self.etcd.url(), self.api.url(), self.path("ca"));
        let pages = number.div_ceil(PAGE).to_string();
        let arguments = [
            "--download",
            &etcd,
            prefix,
            &url,
            &ca,
            &pages,
            accept,
            encoding,
        ];
        self.run(name, &own, &arguments);
    }

    fn puts(&mut self) {
        let own = std::env::current_exe().expect("this program");
        let own = own.display().to_string();
        self.etcd.ctl(&["del", "--prefix", "/bare/"]);
        let (url, number) = (self.etcd.url(), FIRST.to_string());
        self.run("bare puts, 20k", &own, &["--puts", &url, &number]);
    }

    fn round(&mut self) {
        self.serve(10);
        self.program("smallest", "plain", "/p10", &[]);
        for (number, bare, run) in [
            (1_000, "bare, 1k", "protobuf, 1k"),
            (10_000, "bare, 10k", "protobuf, 10k"),
            (100_000, "bare, 100k", "protobuf, 100k"),
        ] {
            self.serve(number);
            let prefix = format!("/p{number}");
            self.download(bare, (number, &prefix), PROTOBUF, "identity");
            self.program(run, "identity", &prefix, &[]);
        }
        self.serve(10_000);
        self.served.paced.store(true, Ordering::Relaxed);
        let all = (10_000, "/p10000");
        self.download("bare, 10k, paced", all, PROTOBUF, "identity");
        self.program("protobuf, 10k, paced", "identity", "/p10000", &[]);
        self.served.paced.store(false, Ordering::Relaxed);
        self.download("bare gzip, 10k", all, PROTOBUF, "gzip");
        self.program("protobuf gzip, 10k", "gzip", "/p10000", &[]);
        self.served.json.store(true, Ordering::Relaxed);
        self.download("bare JSON, 10k", all, JSON, "identity");
        self.program("JSON, 10k", "identity", "/p10000", &[]);
        self.download("bare JSON gzip, 10k", all, JSON, "gzip");
        self.program("JSON gzip, 10k", "gzip", "/p10000", &[]);
        self.serve(10_000);
        self.served.churned.fetch_add(1, Ordering::Relaxed);
        self.program("1 % churn, 10k", "identity", "/churn", &[]);
        self.served.churned.store(0, Ordering::Relaxed);
        self.program("churn back", "identity", "/churn", &[]);
        self.puts();
        self.serve(FIRST);
        self.etcd.ctl(&["del", "--prefix", "/first/"]);
        self.download("bare, 20k", (FIRST, "/first"), PROTOBUF, "identity");
        self.program("dry run, 20k", "identity", "/first", &["--dry-run"]);
        self.program("first run, 20k", "identity", "/first", &[]);
    }

    fn median(&self, name: &str, value: impl Fn(Cost) -> f64) -> f64 {
        median(self.costs[name].iter().map(|cost| value(*cost)).collect())
    }

    /// The median of the rounds' ratios.
    fn ratio(&self, name: &str, base: &str, value: impl Fn(Cost) -> f64) -> f64 {
        let rounds = self.costs[name].iter().zip(&self.costs[base]);
        median(rounds.map(|(a, b)| value(*a) / value(*b)).collect())
    }

    fn print(&self) {
        println!("| process | wall ms | user ms | sys ms | peak MiB | wall | CPU |");
        println!("|---|---:|---:|---:|---:|---:|---:|");
        for (name, base) in [
            ("bare, 1k", ""),
            ("protobuf, 1k", "bare, 1k"),
            ("bare, 10k", ""),
            ("protobuf, 10k", "bare, 10k"),
            ("bare, 10k, paced", ""),
            ("protobuf, 10k, paced", "bare, 10k, paced"),
            ("bare, 100k", ""),
            ("protobuf, 100k", "bare, 100k"),
            ("bare gzip, 10k", ""),
            ("protobuf gzip, 10k", "bare gzip, 10k"),
            ("bare JSON, 10k", ""),
            ("JSON, 10k", "bare JSON, 10k"),
            ("bare JSON gzip, 10k", ""),
            ("JSON gzip, 10k", "bare JSON gzip, 10k"),
            ("1 % churn, 10k", "bare, 10k"),
            ("bare, 20k", ""),
            ("bare puts, 20k", ""),
            ("dry run, 20k", "bare, 20k"),
            ("first run, 20k", "bare puts, 20k"),
            ("smallest", ""),
        ] {
            let ms = |value: fn(Cost) -> f64| self.median(name, value) * 1e3;
            print!(
                "| {name} | {:.1} | {:.1} | {:.1} | {:.1} |",
                ms(|cost| cost.wall),
                ms(|cost| cost.user),
                ms(|cost| cost.sys),
                self.median(name, |cost| cost.peak)
            );
            if base.is_empty() {
                println!(" | |");
            } else {
                let wall = self.ratio(name, base, |cost| cost.wall);
                println!(" {wall:.2} | {:.2} |", self.ratio(name, base, Cost::cpu));
            }
        }
    }

    fn print_goals(&self) {
        let per_pod = |small, large, pods: f64| {
            (self.median(large, Cost::cpu) - self.median(small, Cost::cpu)) / pods
        };
        let first = per_pod("protobuf, 1k", "protobuf, 10k", 9_000.0);
        let second = per_pod("protobuf, 10k", "protobuf, 100k", 90_000.0);
        let writing = self.costs["first run, 20k"].iter();
        let writing = writing.zip(&self.costs["dry run, 20k"]);
        let writing = writing.zip(&self.costs["bare puts, 20k"]);
        let writing = writing.map(|((first, dry), puts)| (first.wall - dry.wall) / puts.wall);
        println!("\n| goal | at most | measured | |");
        println!("|---|---:|---:|---|");
        for (goal, most, measured) in [
            (
                "wall time of a run in sync, 10k, to the bare process's, paced",
                1.1,
                self.ratio("protobuf, 10k, paced", "bare, 10k, paced", |cost| cost.wall),
            ),
            (
                "its CPU time, to the bare process's",
                1.5,
                self.ratio("protobuf, 10k", "bare, 10k", Cost::cpu),
            ),
            (
                "peak memory, 10k, MiB",
                20.0,
                self.median("protobuf, 10k", |cost| cost.peak),
            ),
            (
                "peak memory, 100k, MiB",
                90.0,
                self.median("protobuf, 100k", |cost| cost.peak),
            ),
            (
                "CPU for one more pod, 10k to 100k, to 1k to 10k",
                1.15,
                second / first,
            ),
            (
                "wall time of 20,000 creates (first run less dry run), to bare puts",
                1.3,
                median(writing.collect()),
            ),
            (
                "CPU of the smallest run, ms",
                5.0,
                self.median("smallest", Cost::cpu) * 1e3,
            ),
            (
                "CPU of a run in sync, 10k, in JSON, to the bare process's",
                3.0,
                self.ratio("JSON, 10k", "bare JSON, 10k", Cost::cpu),
            ),
        ]
        .into_iter()
        .chain(many())
        {
            let met = if measured <= most { "met" } else { "missed" };
            println!("| {goal} | {most} | {measured:.2} | {met} |");
        }
    }
}

/// The cost of many of one thing, relative to that of a tenth of them: in instructions counted by valgrind,
/// because CPU times of such short runs are too coarse. The cost of a run without any is subtracted.
fn many() -> [(&'static str, f64, f64); 4] {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let count = |thing: &str, number: usize| {
        many::write(thing, number, folder.path());
        let [store, pods] = ["store", "pods"].map(|name| folder.path().join(name));
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(env!("CARGO_BIN_EXE_vulcanized"))
            .args(["--owner=bench", "--dry-run", "--alarm-exit-code=0"])
            .arg("--store-file")
            .arg(store)
            .arg("--pods")
            .arg(pods)
            .output()
            .expect("valgrind: run `tests/setup`");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let count = text.split_once("Collected : ").expect("a count").1;
        let count = count.lines().next().unwrap_or_default();
        count.parse::<f64>().expect("a number")
    };
    many::CASES.map(|(goal, thing, number)| {
        let nothing = count(thing, 0);
        let times = (count(thing, 10 * number) - nothing) / (count(thing, number) - nothing);
        (goal, 11.5, times)
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Starts the servers, and waits for the end of stdin.
fn serve(number: usize, json: bool) {
    let mut bench = Bench::start();
    bench.serve(number);
    bench.served.json.store(json, Ordering::Relaxed);
    bench.program("set up", "identity", "/p", &[]);
    println!(
        "{} {}",
        env!("CARGO_BIN_EXE_vulcanized"),
        bench.arguments("identity", "/p").join(" ")
    );
    io::copy(&mut io::stdin(), &mut io::sink()).expect("stdin");
}

fn compare(rounds: usize) {
    let mut bench = Bench::start();
    for number in [10, 1_000, 10_000, 100_000] {
        bench.serve(number);
        bench.program("set up", "identity", &format!("/p{number}"), &[]);
    }
    bench.serve(10_000);
    bench.program("set up", "identity", "/churn", &[]);
    // Warms up, and fills the cache of compressed pages.
    bench.round();
    bench.costs.clear();
    for _ in 0..rounds {
        bench.round();
    }
    bench.print();
    bench.print_goals();
}
