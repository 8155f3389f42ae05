//! How often configuration files were taken up while the server runs, and which content is in force, as upstream's
//! metrics tell it.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::http::metrics::header;

/// What has become of one file.
#[derive(Debug, Default)]
pub struct Reload(Mutex<State>);

#[derive(Clone, Debug, Default)]
struct State {
    /// Of the content in force; empty when there is no such file.
    hash: String,
    succeeded: Outcome,
    failed: Outcome,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    total: u64,
    last: Timestamp,
}

impl Outcome {
    fn note(&mut self, now: Timestamp) {
        *self = Self { total: self.total + 1, last: now };
    }
}

impl Reload {
    /// The server starts with this content.
    pub fn begins_with(&self, text: &str) {
        self.0.lock().hash = hash(text);
    }

    /// Other content has come into force.
    pub fn succeeded(&self, text: &str, now: Timestamp) {
        let mut state = self.0.lock();
        state.hash = hash(text);
        state.succeeded.note(now);
    }

    /// Other content could not be used.
    pub fn failed(&self, now: Timestamp) {
        self.0.lock().failed.note(now);
    }
}

fn hash(text: &str) -> String {
    format!("sha256:{}", coracle_stdx::hex(&Sha256::digest(text.as_bytes())))
}

/// The files that a server follows.
#[derive(Debug, Default)]
pub struct Reloads {
    /// AuthenticationConfiguration.
    pub authentication: Arc<Reload>,
    /// AuthorizationConfiguration.
    pub authorization: Arc<Reload>,
    /// EncryptionConfiguration.
    pub encryption: Arc<Reload>,
}

/// Name of the configuration, and how stable upstream says that its counts are.
const FILES: [(&str, &str); 3] =
    [("authentication", "BETA"), ("authorization", "BETA"), ("encryption", "ALPHA")];

impl Reloads {
    /// Writes the metrics of the files that there are.
    pub(crate) fn write(&self, out: &mut String) {
        let all = [&self.authentication, &self.authorization, &self.encryption];
        for ((name, stability), reload) in FILES.iter().zip(all) {
            let state = reload.0.lock().clone();
            if !state.hash.is_empty() {
                state.write(out, name, stability);
            }
        }
    }
}

impl State {
    fn write(&self, out: &mut String, name: &str, stability: &str) {
        // Servers have no identities of their own here: the hash of none is empty.
        let own = "apiserver_id_hash=\"\"";
        let prefix = format!("apiserver_{name}_config_controller");
        let outcomes = [("failure", &self.failed), ("success", &self.succeeded)];
        let happened = || outcomes.iter().filter(|(_, outcome)| outcome.total > 0);
        if happened().next().is_some() {
            let metric = format!("{prefix}_automatic_reload_last_timestamp_seconds");
            let (last, total) = match name {
                "encryption" => (
                    "last successful or failed automatic reload of encryption configuration split by"
                        .to_owned(),
                    "reload successes and failures of encryption configuration split by".to_owned(),
                ),
                _ => (
                    format!("last automatic reload of {name} configuration split by status and"),
                    format!("automatic reloads of {name} configuration split by status and"),
                ),
            };
            let help = format!("[{stability}] Timestamp of the {last} apiserver identity.");
            header(out, &metric, "gauge", &help);
            for (status, outcome) in happened() {
                let at = outcome.last.as_duration().as_secs_f64();
                let _ = writeln!(out, "{metric}{{{own},status=\"{status}\"}} {at}");
            }
            let metric = format!("{prefix}_automatic_reloads_total");
            header(
                out,
                &metric,
                "counter",
                &format!("[{stability}] Total number of {total} apiserver identity."),
            );
            for (status, outcome) in happened() {
                let _ = writeln!(out, "{metric}{{{own},status=\"{status}\"}} {}", outcome.total);
            }
        }
        let metric = format!("{prefix}_last_config_info");
        let help = format!(
            "[ALPHA] Information about the last applied {name} configuration with hash as label, split by apiserver \
             identity."
        );
        header(out, &metric, "gauge", &help);
        let _ = writeln!(out, "{metric}{{{own},hash=\"{}\"}} 1", self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_followed_are_counted_and_others_are_not_shown() {
        let reloads = Reloads::default();
        let mut out = String::new();
        reloads.write(&mut out);
        assert_eq!(out, "");
        let now = Timestamp::from_second(7).unwrap();
        reloads.authorization.begins_with("a");
        reloads.authorization.failed(now);
        reloads.authorization.succeeded("", now);
        reloads.write(&mut out);
        let prefix = "apiserver_authorization_config_controller";
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for line in [
            format!(
                "{prefix}_automatic_reload_last_timestamp_seconds{{apiserver_id_hash=\"\",status=\"failure\"}} 7"
            ),
            format!("{prefix}_automatic_reloads_total{{apiserver_id_hash=\"\",status=\"success\"}} 1"),
            format!("{prefix}_last_config_info{{apiserver_id_hash=\"\",hash=\"sha256:{empty}\"}} 1"),
        ] {
            assert!(out.lines().any(|l| l == line), "{line} not in\n{out}");
        }
        assert!(!out.contains("encryption"));
    }
}
