//! The program: arguments, logging, one run, an exit code.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use log::error;

use vulcanized::cli::Cli;
use vulcanized::connect::NamespacesMix;
use vulcanized::layout::ObserveError;
use vulcanized::run::{self, Exit};
use vulcanized::signals::Signals;
use vulcanized::{logging, report};

fn main() -> ExitCode {
    // First of all: as PID 1 there is no default that would end the program.
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
    let config = Cli::try_parse().and_then(|cli| cli.config(&|name| std::env::var_os(name)));
    let mut config = match config {
        Ok(config) => config,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let stdout = io::stdout();
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    config
        .output
        .color
        .get_or_insert(stdout.is_terminal() && !dumb);
    logging::start(config.output, std::env::var("RUST_LOG").ok().as_deref());
    let mut out = io::BufWriter::new(stdout.lock());
    let result = run::run(&config, &signals, &mut out);
    // A closed stdout is no failure; whatever else there was has been said already.
    let _ = out.flush();
    match result {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Alarm) => ExitCode::from(3),
        Ok(Exit::Changes) => ExitCode::from(4),
        Err(failure) => {
            error!("{}", report::redacted(&format!("{failure:#}")));
            let usage = failure.is::<NamespacesMix>()
                || matches!(failure.downcast_ref(), Some(ObserveError::Ambiguous(..)));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
