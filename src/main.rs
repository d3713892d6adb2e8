//! The program: arguments, logging, one run, an exit code.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::SystemTime;

use log::{error, warn};

use vulcanized::internals::config;
use vulcanized::internals::kube::NamespacesMix;
use vulcanized::internals::layout::ObserveError;
use vulcanized::internals::run::{self, Exit};
use vulcanized::internals::signals::Signals;
use vulcanized::internals::{logging, look, metrics, text};

fn main() -> ExitCode {
    // Comes first: PID 1 has no default signal handlers that would end the program.
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            let _ = writeln!(
                io::stderr(),
                "error: failed to install signal handlers: {error}"
            );
            return ExitCode::from(1);
        }
    };
    let start = SystemTime::now();
    let stdout = io::stdout();
    let cli = match config::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.generate(&mut stdout.lock()) {
        Ok(false) => {}
        // A closed stdout is not a failure.
        Ok(true) | Err(_) => return ExitCode::SUCCESS,
    }
    let mut config = match cli.config(&|name| std::env::var_os(name)) {
        Ok(config) => config,
        Err(error) => return usage(&error),
    };
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    config
        .output
        .color
        .get_or_insert(stdout.is_terminal() && !dumb);
    logging::start(config.output, std::env::var("RUST_LOG").ok().as_deref());
    for warning in config::unread_variables(std::env::vars_os()) {
        warn!("{warning}");
    }
    let mut out = io::BufWriter::new(stdout.lock());
    let (result, outcome) = match config.look() {
        Some(what) => {
            let exit = look::look(&config, what, &mut config.reporter(&mut out));
            (exit, None)
        }
        None => match run::run(&config, &signals, &mut config.reporter(&mut out)) {
            Ok(outcome) => (Ok(outcome.exit), Some(outcome)),
            Err(failure) => (Err(failure), None),
        },
    };
    let mut code = match &result {
        Ok(Exit::Done) => 0,
        Ok(Exit::Alarm) => config.output.alarm_exit_code,
        Ok(Exit::Unpublished) => 3,
        Ok(Exit::Changes) => 4,
        Ok(Exit::Unexpected) => 5,
        Err(failure) => {
            let usage = failure.is::<NamespacesMix>()
                || matches!(failure.downcast_ref(), Some(ObserveError::Ambiguous(..)));
            if usage { 2 } else { 1 }
        }
    };
    match &result {
        Ok(Exit::Unexpected) => error!(
            "the plan is not the expected one: {} changes were applied. If the plan above is right, give its hash \
             to `--expect`",
            outcome.as_ref().map_or(0, |outcome| outcome.applied.len())
        ),
        Ok(_) => {}
        Err(failure) => {
            let text = format!("{failure:#}");
            let text = text::redacted(&text);
            error!("{text}");
            // A full stdout has been reported already.
            let _ = config.reporter(&mut out).failed(&text, code);
        }
    }
    // A closed stdout is not a failure; any other error has been reported already.
    let _ = out.flush();
    if let Err(failure) = metrics::write(
        &config.metrics,
        &config.owner,
        start,
        code,
        outcome.as_ref(),
    ) {
        error!("{failure:#}");
        code = 1;
    }
    ExitCode::from(code)
}

fn usage(error: &clap::Error) -> ExitCode {
    // An error of writing to stderr has no better place to go.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
