//! The log on stderr, as text or as JSON lines.

use std::io::Write as _;
use std::time::SystemTime;

use log::LevelFilter;
use serde_json::json;

use crate::cli::{LogFormat, Output};
use crate::report::{escaped, redacted};

/// Starts logging: warnings, or more with `-v`, or what `RUST_LOG` says.
pub fn start(output: Output, rust_log: Option<&str>) {
    let ours = match (output.quiet, output.verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, 2) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    };
    let mut builder = env_logger::Builder::new();
    // Libraries may print what they send, passwords included: they stay at warnings.
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module(env!("CARGO_CRATE_NAME"), ours);
    if let Some(directives) = rust_log {
        builder.parse_filters(directives);
    }
    let format = output.log_format;
    builder.format(move |out, record| {
        let message = record.args().to_string();
        let message = redacted(&message);
        let level = record.level().as_str().to_ascii_lowercase();
        match format {
            LogFormat::Text => writeln!(out, "{level}: {}", escaped(&message)),
            LogFormat::Json => {
                let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
                let line = json!({
                    "time": time,
                    "level": level,
                    "message": message,
                    "fields": { "module": record.target() },
                });
                writeln!(out, "{line}")
            }
        }
    });
    builder.init();
}
